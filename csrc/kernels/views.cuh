// Strided matrices by tiles of 4096 entries, in registers of a block of 512 threads.
//
// A matrix is cut along its *lines*: its rows, or its columns where it lies transposed. A tile's
// entries are dealt to threads, a unit of eight along a line to each, and two matrices that lie
// alike are read and written straight from registers. One that lies the other way is turned in
// shared memory (without bank conflicts in float), one that is not aligned goes through it entry by
// entry.
#pragma once

#include "elements.cuh"

namespace schattor::cuda {

constexpr int kTileLog = 12;
constexpr int kTileSize = 1 << kTileLog;
constexpr int kThreads = kTileSize / kUnit;
// Blocks on a multiprocessor that registers must leave room for.
template <class T>
constexpr int kResident = sizeof(T) == sizeof(double) ? 1 : 2;

// Lines `line` .. and in them the places `place` ..; what is not inside counts as zero.
struct Tile {
  int64_t line, place;
  int lines, width;          // inside the matrix, at most 2^log_lines and 2^log_width
  int log_lines, log_width;  // together kTileLog

  constexpr Tile turned() const { return {place, line, width, lines, log_width, log_lines}; }
};

struct Grid {
  int64_t lines, width;
  int log_lines, log_width;

  constexpr int64_t across() const { return (width + (int64_t{1} << log_width) - 1) >> log_width; }
  constexpr int64_t count() const {
    return ((lines + (int64_t{1} << log_lines) - 1) >> log_lines) * across();
  }
  constexpr Tile tile(int64_t t) const {
    const int64_t line = (t / across()) << log_lines, place = (t % across()) << log_width;
    return {line,      place,    cut(lines - line, log_lines), cut(width - place, log_width),
            log_lines, log_width};
  }

 private:
  static constexpr int cut(int64_t rest, int log) {
    return rest < (int64_t{1} << log) ? static_cast<int>(rest) : 1 << log;
  }
};

// How a matrix is cut: along its rows, along its columns, or as one line where every matrix
// concerned is contiguous, so that odd columns cost no alignment.
enum class Cut { kRows, kColumns, kFlat };

// Tiles are square, or as thin as the matrix is.
constexpr Grid grid(int64_t rows, int64_t cols, Cut cut) {
  if (cut == Cut::kFlat) return {1, rows * cols, 0, kTileLog};
  int thin = 0;
  while (thin < kTileLog / 2 && (int64_t{1} << thin) < rows) ++thin;
  if (cut == Cut::kRows) return {rows, cols, thin, kTileLog - thin};
  return {cols, rows, kTileLog - thin, thin};
}

// Columns shorter than a unit are not worth following.
constexpr bool lies_transposed(const View& view, int64_t rows) {
  return rows >= kUnit && view.col_stride != 1 && view.row_stride == 1;
}
constexpr bool is_contiguous(const View& view, int64_t rows, int64_t cols) {
  return view.col_stride == 1 && (rows == 1 || view.row_stride == cols);
}
constexpr bool is_contiguous_transposed(const View& view, int64_t rows) {
  return view.row_stride == 1 && view.col_stride == rows;
}

// One matrix as a cut sees it.
struct Side {
  char* data;
  Dtype dtype;
  int64_t line_stride, place_stride;

  constexpr Side(const View& view, Dtype dtype, Cut cut)
      : data(static_cast<char*>(view.data)),
        dtype(dtype),
        line_stride(cut == Cut::kColumns ? view.col_stride : view.row_stride),
        place_stride(cut == Cut::kRows   ? view.col_stride
                     : cut == Cut::kFlat ? 1
                                         : view.row_stride) {}
  constexpr Side turned() const { return Side{data, dtype, place_stride, line_stride}; }

  // Of an entry, in entries from `data`.
  constexpr int64_t offset(const Tile& tile, int line, int place) const {
    return (tile.line + line) * line_stride + (tile.place + place) * place_stride;
  }
  DEV char* at(const Tile& tile, int line, int place) const {
    return data + offset(tile, line, place) * size_of(dtype);
  }
  // A tile's lines are whole units that may be moved by 16 bytes.
  DEV bool has_units(const Tile& tile) const {
    return place_stride == 1 && tile.width % kUnit == 0 &&
           reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           (tile.log_lines == 0 || line_stride * size_of(dtype) % 16 == 0);
  }

 private:
  constexpr Side(char* data, Dtype dtype, int64_t line_stride, int64_t place_stride)
      : data(data), dtype(dtype), line_stride(line_stride), place_stride(place_stride) {}
};

// A thread's entries of a tile.
template <class T>
struct Entries {
  T x[kUnit];
};

// Where a thread's unit lies in a tile of whole units.
struct Unit {
  int line, place;
  bool inside;
  DEV explicit Unit(const Tile& tile) {
    const int index = threadIdx.x * kUnit;
    line = index >> tile.log_width;
    place = index & ((1 << tile.log_width) - 1);
    inside = line < tile.lines && place < tile.width;
  }
};

// Where an entry of a tile lies in shared memory, for whom it is `index` of line after line. Of the
// six bits of place in a square tile, those that tell units apart go to banks first; the line then
// turns them. So the 32 entries that a warp touches at once, in four lines of eight units or across
// them, lie in 32 banks.
constexpr int slot(int index) {
  const int line = index >> 6, place = index & 63;
  const int spread = (place & 3) | (place >> 3) << 2 | (place & 4) << 3;
  return line << 6 | (spread ^ ((line >> 3) << 2 | (line & 3)));
}

// A unit of lines, or of a tile that was turned, in shared memory.
template <class T>
DEV void put(const Entries<T>& entries, const Tile& tile, bool turned, T* turning) {
  const Unit unit(turned ? tile.turned() : tile);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    turning[turned ? slot((unit.place + k) << tile.log_width | unit.line)
                   : slot(threadIdx.x * kUnit + k)] = entries.x[k];
  }
}
template <class T>
DEV void get(const T* turning, const Tile& tile, bool turned, Entries<T>& entries) {
  const Unit unit(turned ? tile.turned() : tile);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    entries.x[k] = turning[turned ? slot((unit.place + k) << tile.log_width | unit.line)
                                  : slot(threadIdx.x * kUnit + k)];
  }
}

// Every entry of a tile in turn, so that neighbouring threads have neighbouring memory:
// body(slot, pointer), the pointer null outside the matrix.
template <class Body>
DEV void each_entry(const Side& side, const Tile& tile, const Body& body) {
  const bool by_lines = llabs(side.line_stride) < llabs(side.place_stride);
  const int log = by_lines ? tile.log_lines : tile.log_width;
#pragma unroll 1
  for (int t = threadIdx.x; t < kTileSize; t += kThreads) {
    const int fast = t & ((1 << log) - 1), slow = t >> log;
    const int line = by_lines ? fast : slow, place = by_lines ? slow : fast;
    const bool inside = line < tile.lines && place < tile.width;
    body(slot(line << tile.log_width | place), inside ? side.at(tile, line, place) : nullptr);
  }
}

// Loads of a tile, begun by the constructor and ended by finish(), which every thread of the block
// calls; `turning` is kTileSize entries of shared memory.
template <class T>
class Loads {
 public:
  DEV Loads(const Side& side, const Tile& tile)
      : side_(side),
        tile_(tile),
        straight_(side.has_units(tile)),
        turned_(!straight_ && side.turned().has_units(tile.turned())) {
    raw_ = {};  // on every path: else registers hold it from one tile to the next
    if (straight_) begin(side, tile);
    if (turned_) begin(side.turned(), tile.turned());
  }

  DEV void finish(T* turning, Entries<T>& entries) const {
    if (straight_) return from_raw(raw_, side_.dtype, entries.x);
    if (turned_) {
      from_raw(raw_, side_.dtype, entries.x);
      put(entries, tile_, true, turning);
    } else {
      each_entry(side_, tile_, [&](int slot, const char* entry) {
        turning[slot] = entry != nullptr ? load_entry<T>(entry, side_.dtype) : T(0);
      });
    }
    __syncthreads();
    get(turning, tile_, false, entries);
    __syncthreads();
  }

 private:
  DEV void begin(const Side& side, const Tile& tile) {
    const Unit unit(tile);
    if (unit.inside) {
      raw_ = load_raw<T>(side.at(tile, unit.line, unit.place), size_of(side.dtype));
    }
  }

  const Side side_;
  const Tile tile_;
  const bool straight_, turned_;
  RawUnit<T> raw_;
};

template <class T>
DEV void store_units(const Entries<T>& entries, const Side& side, const Tile& tile) {
  const Unit unit(tile);
  if (unit.inside) {
    store_raw(to_raw(entries.x, side.dtype), size_of(side.dtype),
              side.at(tile, unit.line, unit.place));
  }
}

// Stores a tile; entries outside the matrix are left as they are. Called by every thread.
template <class T>
DEV void store(Entries<T>& entries, const Side& side, const Tile& tile, T* turning) {
  if (side.has_units(tile)) return store_units(entries, side, tile);
  put(entries, tile, false, turning);
  __syncthreads();
  if (side.turned().has_units(tile.turned())) {
    get(turning, tile, true, entries);
    store_units(entries, side.turned(), tile.turned());
  } else {
    each_entry(side, tile, [&](int slot, char* entry) {
      if (entry != nullptr) store_entry(turning[slot], side.dtype, entry);
    });
  }
  __syncthreads();
}

}  // namespace schattor::cuda
