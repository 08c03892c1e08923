#include "crc32c.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lsb {
namespace {

struct Table {
  uint32_t entry[256];
  Table() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0x82F63B78u : 0);
      entry[i] = c;
    }
  }
};

uint32_t by_table(const uint8_t* data, size_t bytes, uint32_t crc) {
  static const Table table;
  for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ table.entry[(crc ^ data[i]) & 0xFF];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t by_hardware(const uint8_t* data, size_t bytes, uint32_t crc) {
  uint64_t wide = crc;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; bytes; ++data, --bytes) crc = _mm_crc32_u8(crc, *data);
  return crc;
}
#endif

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t bytes, uint32_t seed) {
  uint32_t crc = ~seed;
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  crc = hardware ? by_hardware(data, bytes, crc) : by_table(data, bytes, crc);
#else
  crc = by_table(data, bytes, crc);
#endif
  return ~crc;
}

}  // namespace lsb
