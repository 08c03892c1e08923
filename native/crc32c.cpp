#include "crc32c.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define LSB_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#define LSB_CRC_TARGET __attribute__((target("+crc")))
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

#if defined(LSB_CRC_TARGET)
#if defined(__x86_64__)
LSB_CRC_TARGET inline uint32_t step(uint32_t crc, uint64_t word) { return (uint32_t)_mm_crc32_u64(crc, word); }
LSB_CRC_TARGET inline uint32_t step_byte(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
#else
LSB_CRC_TARGET inline uint32_t step(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
LSB_CRC_TARGET inline uint32_t step_byte(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
bool has_instruction() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_CRC32;
#else
  return true;  // every aarch64 of macOS
#endif
}
#endif

LSB_CRC_TARGET inline uint32_t step(uint32_t crc, const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return step(crc, word);
}

LSB_CRC_TARGET uint32_t one_stream(const uint8_t* data, size_t bytes, uint32_t crc) {
  for (; bytes >= 8; data += 8, bytes -= 8) crc = step(crc, data);
  for (; bytes; ++data, --bytes) crc = step_byte(crc, *data);
  return crc;
}

// The instruction takes three cycles but one can start in each: three streams keep it busy.
constexpr size_t kStream = 4096;

// What kStream zero bytes make of a crc; it is linear, so a table for each byte of the crc does.
struct Shift {
  uint32_t entry[4][256];
  Shift() {
    static const uint8_t zeros[kStream] = {};
    for (int place = 0; place < 4; ++place)
      for (uint32_t byte = 0; byte < 256; ++byte) entry[place][byte] = one_stream(zeros, kStream, byte << 8 * place);
  }
  uint32_t operator()(uint32_t crc) const {
    return entry[0][crc & 255] ^ entry[1][crc >> 8 & 255] ^ entry[2][crc >> 16 & 255] ^ entry[3][crc >> 24];
  }
};

LSB_CRC_TARGET uint32_t by_instruction(const uint8_t* data, size_t bytes, uint32_t crc) {
  static const Shift shift;
  for (; bytes >= 3 * kStream; data += 3 * kStream, bytes -= 3 * kStream) {
    uint32_t second = 0, third = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      crc = step(crc, data + i);
      second = step(second, data + kStream + i);
      third = step(third, data + 2 * kStream + i);
    }
    crc = shift(shift(crc) ^ second) ^ third;
  }
  return one_stream(data, bytes, crc);
}
#endif

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t bytes, uint32_t seed) {
#if defined(LSB_CRC_TARGET)
  static const bool instruction = has_instruction();
  if (instruction) return ~by_instruction(data, bytes, ~seed);
#endif
  return ~by_table(data, bytes, ~seed);
}

}  // namespace lsb
