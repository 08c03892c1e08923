#pragma once
#include <cstddef>
#include <cstdint>

namespace lsb {
// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as in iSCSI; `seed` is an earlier result.
uint32_t crc32c(const uint8_t* data, size_t bytes, uint32_t seed);
}  // namespace lsb
