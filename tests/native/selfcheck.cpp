// Every tier of this machine against the portable one, without Python: for sanitizer builds and for
// processors that only an emulator has. Prints one checksum over all results: the golden hash, the
// same on every instruction set and number of threads. Exits 1 where tiers disagree.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "crc32c.h"
#include "dispatch.h"
#include "pool.h"

using namespace lsb;

namespace {

std::mt19937 generator;  // its sequence is fixed by the standard, that of distributions is not

int number(int least, int most) { return least + (int)(generator() % (uint32_t)(most - least + 1)); }
float real() { return (float)((int)(generator() >> 8) - (1 << 23)) / (float)(1 << 22); }
std::vector<float> reals(int64_t count) {
  std::vector<float> x(count);
  for (auto& v : x) v = real();
  return x;
}

uint32_t digest = 0;
template <typename T> void add(const std::vector<T>& v) {
  digest = crc32c(reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof(T), digest);
}

PlaneTables random_tables(int window, int planes) {
  uint8_t hashes[32] = {};
  for (int n = 0; n < 2; ++n) {
    const int outside = std::min(std::max(8 + 4 * n - window, 0), 4);
    for (int i = 0; i < 16 && outside < 4; ++i)
      hashes[n * 16 + i] = i >> outside << outside == i ? number(0, 15) : hashes[n * 16 + (i >> outside << outside)];
  }
  std::vector<int8_t> levels(planes * 16);
  for (auto& v : levels) v = (int8_t)number(-31, 31);
  return make_tables(window, hashes, planes, levels.data());
}

void check_planes(int window, int count, int64_t rows, int64_t cols, int tile_rows, int group) {
  const PlaneTables tables = random_tables(window, count);
  const Geometry g{{rows, cols}, tile_rows};
  std::vector<uint8_t> bytes(count * g.plane_bytes());
  std::vector<int16_t> decoded(rows * cols), again(rows * cols);
  const auto target = reals(rows * cols);
  std::vector<float> scaled(target);
  for (auto& v : scaled) v *= 12.0f;
  std::vector<float> factor(cols * cols), panels((cols + 31) / 32 * cols * 32);
  for (auto& v : factor) v = 0.02f * real();
  pack_panels(factor.data(), cols, cols, cols, panels.data());
  TileJob job{};
  job.target = scaled.data(), job.feedback = panels.data(), job.block = 4, job.tables = &tables;
  job.decoded = decoded.data();
  std::vector<uint8_t*> tiles;
  for (int64_t tile = 0, at = 0; tile < g.tiles(); at += count * g.tile(tile++).plane_bytes())
    tiles.push_back(bytes.data() + at);
  encode(job, g, tiles);
  const Planes planes{{tiles.begin(), tiles.end()}, g, &tables};
  planes_decode(planes, 0, rows, again.data());
  if (decoded != again) std::printf("decoded weights differ from encoded ones\n"), std::exit(1);
  add(bytes);
  add(decoded);
  const auto row_scale = reals(rows);
  for (int64_t tokens : {1, 2, 5, 9}) {
    const auto x = reals(tokens * cols);
    PackedRows packed(tokens, cols, group);
    packed.pack(x.data(), tokens);
    std::vector<float> y(tokens * rows);
    planes_matmul(planes, packed.view(), row_scale.data(), y.data(), rows);
    add(y);
  }
}

void check_dense(Dense kind, int64_t rows, int64_t cols, int64_t tokens) {
  std::vector<uint8_t> bytes(rows * cols * 4);
  for (auto& b : bytes) b = (uint8_t)number(0, 255);
  if (kind == Dense::kF32)
    for (int64_t i = 0; i < rows * cols; ++i) reinterpret_cast<float*>(bytes.data())[i] = real();
  if (kind == Dense::kF16 || kind == Dense::kBF16)
    for (int64_t i = 0; i < rows * cols; ++i) bytes[2 * i + 1] = (bytes[2 * i + 1] & 0x80) | 0x3C;
  const auto x = reals(tokens * cols), scale = reals(rows);
  std::vector<float> y(tokens * rows);
  const bool scaled = kind == Dense::kI8 || kind == Dense::kSign;
  dense_matmul({kind, bytes.data(), scaled ? scale.data() : nullptr, rows, cols}, x.data(), tokens, y.data());
  add(y);
}

void check_cache(int key_bits, int value_bits, int heads, int kv_heads, int head_dim, int64_t context) {
  const int64_t numbers = kv_heads * context * head_dim;
  std::vector<uint16_t> keys(numbers * key_bits / 16), values(numbers * value_bits / 16);
  std::vector<uint16_t> key_scale(kv_heads * context), value_scale(key_scale.size());
  const CacheView cache{key_bits, value_bits, keys.data(), values.data(), key_scale.data(), value_scale.data(), 1,
                        context, kv_heads, head_dim};
  const int64_t rows = context - 3;
  const auto k = reals(rows * kv_heads * head_dim), v = reals(rows * kv_heads * head_dim);
  std::vector<int32_t> slot(rows), position(rows);
  for (int64_t p = 0; p < rows; ++p) position[p] = (int32_t)p;
  store_kv(cache, k.data(), v.data(), slot.data(), position.data(), rows);
  add(keys), add(values), add(key_scale), add(value_scale);
  const auto q = reals(9 * heads * head_dim);
  const int32_t seen[9] = {0, 17, (int32_t)context - 4, 3, 30, 31, 32, 33, 34};
  for (int64_t count : {1, 3, 9})
    for (int64_t window : {0, 8}) {
      std::vector<float> out(count * heads * head_dim);
      attend(cache, q.data(), heads, slot.data(), seen, count, window, out.data());
      add(out);
    }
}

void check_network() {
  auto x = reals(6 * 96);
  const auto gain = reals(96);
  std::vector<float> out(x.size());
  active().rms_norm(x.data(), gain.data(), 6, 96, 1e-5f, out.data());
  add(out);
  active().swiglu(x.data(), out.data(), (int64_t)x.size(), out.data());
  add(out);
  rotate(x.data(), gain.data(), 6, 96, 32, nullptr, false, out.data());
  add(out);
  std::vector<float> h(96 * 96);
  gram(x.data(), 6, 96, h.data(), 96);
  add(h);
}

uint32_t run() {
  generator.seed(2026);
  digest = 0;
  for (int window = 4; window <= 12; ++window)
    check_planes(window, 1 + window % 5, 70 + 13 * window, 4 * (9 + window), window % 2 ? 32 : 96, 4 * (9 + window));
  check_planes(7, 3, 200, 256, 64, 64);
  check_planes(8, 8, 64, 96, 64, 32);
  for (int kind = 0; kind < 5; ++kind)
    for (int64_t tokens : {1, 3, 8, 20, 98}) check_dense((Dense)kind, 37, tokens < 98 ? 75 : 800, tokens);
  for (int key_bits : {16, 8, 4})
    for (int value_bits : {16, 8, 4}) {
      check_cache(key_bits, value_bits, 6, 2, 32, 48);
      check_cache(key_bits, value_bits, 5, 1, 48, 576);
    }
  check_network();
  return digest;
}

}  // namespace

int main() {
  uint32_t expected = 0;
  bool first = true, same = true;
  for (const std::string& tier : available_tiers())
    for (int threads : {1, 3}) {
      use_tier(tier);
      set_threads(threads);
      const uint32_t found = run();
      std::printf("%s, %d threads: %08x\n", tier.c_str(), threads, found);
      if (first) expected = found;
      same = same && found == expected;
      first = false;
    }
  set_threads(1);
  if (!same) std::printf("tiers disagree\n");
  return same ? 0 : 1;
}
