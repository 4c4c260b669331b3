// simdgroup_matrix: an 8 x 8 matrix, two neighbouring elements of a row in each lane, in the
// layout that MLX's matrix kernels rely on.
#pragma once

namespace metal {
struct msl_cell {
  int row;
  int column;
};
inline msl_cell msl_cell_of(unsigned lane) {
  int quad = lane / 4;
  return {(quad & 4) + (int)(lane / 2) % 4, (quad & 2) * 2 + (int)(lane % 2) * 2};
}

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "only 8 x 8");
  using storage_type = vec<T, 2>;
  vec<T, 2> elements;
  simdgroup_matrix() {}
  explicit simdgroup_matrix(T diagonal) {
    msl_cell cell = msl_cell_of(__msl_lane());
    elements[0] = cell.row == cell.column ? diagonal : T(0);
    elements[1] = cell.row == cell.column + 1 ? diagonal : T(0);
  }
  thread vec<T, 2>& thread_elements() { return elements; }
  const thread vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Columns, int Rows = Columns>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> matrix;
  matrix.elements[0] = value;
  matrix.elements[1] = value;
  return matrix;
}

inline ulong msl_offset(msl_cell cell, int k, ulong row_length, ulong2 origin, bool transposed) {
  ulong row = transposed ? cell.column + k : cell.row;
  ulong column = transposed ? cell.row : cell.column + k;
  return (origin[1] + row) * row_length + origin[0] + column;
}
template <class T, class Pointer>
inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& matrix, Pointer source,
                           ulong row_length = 8, ulong2 origin = ulong2{0, 0},
                           bool transposed = false) {
  msl_cell cell = msl_cell_of(__msl_lane());
  for (int k = 0; k < 2; ++k) {
    matrix.elements[k] = source[msl_offset(cell, k, row_length, origin, transposed)];
  }
}
template <class T, class Pointer>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, Pointer target, ulong row_length = 8,
                            ulong2 origin = ulong2{0, 0}, bool transposed = false) {
  msl_cell cell = msl_cell_of(__msl_lane());
  for (int k = 0; k < 2; ++k) {
    target[msl_offset(cell, k, row_length, origin, transposed)] = matrix.elements[k];
  }
}

template <class A, class B, class C>
struct msl_factors {
  simdgroup_matrix<A, 8, 8> a;
  simdgroup_matrix<B, 8, 8> b;
  simdgroup_matrix<C, 8, 8> c;
};

// D = A B + C in float32. A lane that takes no part leaves NaN in its elements.
template <class D, class A, class B, class C>
void msl_multiply(msl_op** lanes, unsigned active) {
  float a[8][8], b[8][8], c[8][8];
  for (int i = 0; i < msl_lanes; ++i) {
    msl_cell cell = msl_cell_of(i);
    for (int k = 0; k < 2; ++k) {
      int row = cell.row, column = cell.column + k;
      if (msl_is_active(active, i)) {
        const auto* given = (const msl_factors<A, B, C>*)lanes[i]->in;
        a[row][column] = (float)given->a.elements[k];
        b[row][column] = (float)given->b.elements[k];
        c[row][column] = (float)given->c.elements[k];
      } else {
        a[row][column] = b[row][column] = c[row][column] = __builtin_nanf("");
      }
    }
  }
  for (int i = 0; i < msl_lanes; ++i) {
    if (!msl_is_active(active, i)) continue;
    msl_cell cell = msl_cell_of(i);
    for (int k = 0; k < 2; ++k) {
      float sum = c[cell.row][cell.column + k];
      for (int j = 0; j < 8; ++j) sum += a[cell.row][j] * b[j][cell.column + k];
      ((simdgroup_matrix<D, 8, 8>*)lanes[i]->out)->elements[k] = (D)sum;
    }
  }
}

template <class D, class A, class B, class C>
MSL_CONVERGENT inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                                         simdgroup_matrix<A, 8, 8> a,
                                                         simdgroup_matrix<B, 8, 8> b,
                                                         simdgroup_matrix<C, 8, 8> c, MSL_PLACE) {
  msl_factors<A, B, C> factors{a, b, c};
  d = msl_collective<simdgroup_matrix<D, 8, 8>>(&msl_multiply<D, A, B, C>, &factors, nullptr, 0,
                                                __COUNTER__, MSL_PLACE_HERE);
}
template <class D, class A, class B>
MSL_CONVERGENT inline void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                              simdgroup_matrix<A, 8, 8> a,
                                              simdgroup_matrix<B, 8, 8> b, MSL_PLACE) {
  auto zeros = make_filled_simdgroup_matrix<D, 8>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zeros, MSL_PLACE_HERE);
}
template <class T>
MSL_CONVERGENT inline simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8> a,
                                                          simdgroup_matrix<T, 8, 8> b) {
  simdgroup_matrix<T, 8, 8> product;
  simdgroup_multiply(product, a, b);
  return product;
}
}  // namespace metal
