// Geometry of the trellis streams: the one place that knows where a weight's bits lie.
//
// A matrix of rows x cols is cut into tiles of `tile_rows` rows, the last one padded to blocks of 32
// rows, and padded to strips of 16 columns. A tile's bytes are plane after plane and depend on no
// other tile. A plane is 16 bit streams: stream r * 4 + j holds the weights of rows 4 g + r and
// columns 4 q + j, all row groups g of quad 0 first, then those of quad 1, ... A byte holds eight
// consecutive steps of one stream, LSB first: the row groups of one block. Bytes lie block by block
// (32 rows), then quad by quad, then the 16 streams: a strip of a block is 64 bytes. Bits before the
// first weight of a stream are zero; padded columns are in no stream.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lsb {

constexpr int kRowGroup = 4;        // rows of one step: one for each 32-bit lane of 128 bits
constexpr int kQuad = 4;            // columns of one step: one 4-byte dot product for each row
constexpr int kStreams = kRowGroup * kQuad;
constexpr int kSteps = 8;           // steps in a byte
constexpr int kBlockRows = kRowGroup * kSteps;
constexpr int kStrip = 16;          // columns of the four quads that a 512-bit register takes
constexpr int kStripBytes = 64;
constexpr int kWindowMin = 4;       // L, bits that select a level
constexpr int kWindowMax = 12;
constexpr int kLevels = 16;
constexpr int kPlanesMax = 8;
constexpr int kPlanesPerGroup = 4;  // planes that share one int8 weight
constexpr int kGroupRatio = 8;      // integer weight = 8 * (planes 1..4) + (planes 5..8)

struct Shape {                      // of a tile, or of all tiles together
  int64_t rows, cols;

  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  int64_t padded_rows() const { return blocks() * kBlockRows; }
  int64_t strips() const { return (cols + kStrip - 1) / kStrip; }
  int64_t block_bytes() const { return strips() * kStripBytes; }
  int64_t plane_bytes() const { return blocks() * block_bytes(); }
};

struct Geometry : Shape {
  int tile_rows;                    // a multiple of 32

  int64_t tiles() const { return (rows + tile_rows - 1) / tile_rows; }
  int64_t first_row(int64_t tile) const { return tile * tile_rows; }
  Shape tile(int64_t index) const {
    const int64_t left = rows - first_row(index);
    return {left < tile_rows ? left : tile_rows, cols};
  }
};

}  // namespace lsb
