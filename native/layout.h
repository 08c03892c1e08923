// Geometry of the trellis streams: the one place that knows where a weight's bits lie.
//
// A matrix of rows x cols is cut into tiles of `tile_rows` rows (a multiple of 16; the last tile may
// be lower). In a tile the weights of one plane form one sequence: column quads outermost, then row
// groups of 16 rows, then 16 rows x 4 columns. 64 consecutive weights are a chunk = one u64, bit i
// (LSB first) is the bit of weight i. A tile's stream starts with one u64 whose top bits are the
// bits "before" weight 0, so that the first window is as free as any other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lsb {

constexpr int kRowGroup = 16;       // rows decoded together: one per 32-bit lane of a 512-bit vector
constexpr int kQuad = 4;            // columns decoded together: one 4-byte dot product per row
constexpr int kChunk = kRowGroup * kQuad;
constexpr int kWindowMin = 4;       // L, bits that select a table entry
constexpr int kWindowMax = 10;
constexpr int kPlanesMax = 8;
constexpr int kPlanesPerGroup = 4;  // planes that share one int8 weight
constexpr int kGroupRatio = 8;      // integer weight = 8 * (planes 1..4) + (planes 5..8)
constexpr int kByteOffset = 128;    // decoded bytes are weight + 128, as the u8 x s8 dot product wants

struct Geometry {
  int64_t rows, cols;
  int tile_rows;

  int64_t row_groups() const { return (rows + kRowGroup - 1) / kRowGroup; }
  int64_t quads() const { return cols / kQuad; }
  int64_t tiles() const { return (row_groups() * kRowGroup + tile_rows - 1) / tile_rows; }
  int64_t groups_per_tile() const { return tile_rows / kRowGroup; }
  int64_t groups_in_tile(int64_t tile) const {
    int64_t left = row_groups() - tile * groups_per_tile();
    return left < groups_per_tile() ? left : groups_per_tile();
  }
  // u64 words before a tile: one prefix word and one word per chunk of every earlier tile.
  int64_t tile_word(int64_t tile) const { return tile * (1 + groups_per_tile() * quads()); }
  int64_t stream_words() const { return tiles() + row_groups() * quads(); }
};

}  // namespace lsb
