// Matrices of float and half, by columns.
#pragma once

namespace metal {
template <class T, int Columns, int Rows>
struct matrix {
  using vector = vec<T, Rows>;
  vector columns[Columns];

  constexpr vector& operator[](int column) { return columns[column]; }
  constexpr const vector& operator[](int column) const { return columns[column]; }

  // for msl_memory.h
  static auto msl_members() {
    return [](auto& to, auto& from) {
      for (int i = 0; i < Columns; ++i) to.columns[i] = from.columns[i];
    };
  }
  template <class Self>
  static constexpr auto& msl_element(Self& self, int i) {
    return self.columns[i];
  }
};

// From numbers and vectors, column by column; from one number, a diagonal; from a matrix of
// the same size; from nothing, zeros.
template <class T, int Columns, int Rows>
struct msl_maker<matrix<T, Columns, Rows>> {
  using M = matrix<T, Columns, Rows>;

  static constexpr M make() { return M{}; }
  template <class A>
  static constexpr enable_if_t<is_arithmetic<A>::value, M> make(const A& diagonal) {
    M result{};
    for (int i = 0; i < (Columns < Rows ? Columns : Rows); ++i) result.columns[i][i] = (T)diagonal;
    return result;
  }
  template <class U>
  static constexpr M make(const matrix<U, Columns, Rows>& other) {
    M result{};
    for (int i = 0; i < Columns; ++i) result.columns[i] = msl_make<vec<T, Rows>>(other.columns[i]);
    return result;
  }
  template <class A, class B, class... Parts>
  static constexpr M make(const A& a, const B& b, const Parts&... parts) {
    constexpr int given =
        msl_shape<A>::size + msl_shape<B>::size + (0 + ... + msl_shape<Parts>::size);
    static_assert(given == Columns * Rows, "wrong number of components in matrix constructor");
    T elements[given] = {};
    int count = 0;
    msl_append(elements, count, a);
    msl_append(elements, count, b);
    (msl_append(elements, count, parts), ...);
    M result{};
    for (int i = 0; i < given; ++i) result.columns[i / Rows][i % Rows] = elements[i];
    return result;
  }
};

template <class T, int C, int R, class Column>
inline matrix<T, C, R> msl_columns(Column column) {
  matrix<T, C, R> result;
  for (int i = 0; i < C; ++i) result.columns[i] = column(i);
  return result;
}
template <class T, int C, int R>
inline matrix<T, C, R> operator+(matrix<T, C, R> a, matrix<T, C, R> b) {
  return msl_columns<T, C, R>([&](int i) { return a.columns[i] + b.columns[i]; });
}
template <class T, int C, int R>
inline matrix<T, C, R> operator-(matrix<T, C, R> a, matrix<T, C, R> b) {
  return msl_columns<T, C, R>([&](int i) { return a.columns[i] - b.columns[i]; });
}
template <class T, int C, int R>
inline matrix<T, C, R> operator-(matrix<T, C, R> a) {
  return msl_columns<T, C, R>([&](int i) { return -a.columns[i]; });
}
template <class T, int C, int R>
inline matrix<T, C, R> operator*(matrix<T, C, R> a, msl_given<T> b) {
  return msl_columns<T, C, R>([&](int i) { return a.columns[i] * b; });
}
template <class T, int C, int R>
inline matrix<T, C, R> operator*(msl_given<T> a, matrix<T, C, R> b) {
  return msl_columns<T, C, R>([&](int i) { return a * b.columns[i]; });
}
template <class T, int C, int R>
inline vec<T, R> operator*(matrix<T, C, R> a, msl_given<vec<T, C>> b) {
  vec<T, R> sum = a.columns[0] * b[0];
  for (int i = 1; i < C; ++i) sum += a.columns[i] * b[i];
  return sum;
}
template <class T, int C, int R>
inline vec<T, C> operator*(msl_given<vec<T, R>> a, matrix<T, C, R> b) {
  vec<T, C> result;
  for (int i = 0; i < C; ++i) result[i] = dot(a, b.columns[i]);
  return result;
}
template <class T, int C, int R, int K>
inline matrix<T, C, R> operator*(matrix<T, K, R> a, matrix<T, C, K> b) {
  return msl_columns<T, C, R>([&](int i) { return a * b.columns[i]; });
}
template <class T, int C, int R>
inline bool operator==(matrix<T, C, R> a, matrix<T, C, R> b) {
  for (int i = 0; i < C; ++i) {
    if (!all(a.columns[i] == b.columns[i])) return false;
  }
  return true;
}
template <class T, int C, int R>
inline bool operator!=(matrix<T, C, R> a, matrix<T, C, R> b) {
  return !(a == b);
}
#define MSL_MATRIX_ASSIGNMENT(op)                                             \
  template <class T, int C, int R, class B>                                   \
  inline matrix<T, C, R>& operator op##=(matrix<T, C, R>& a, const B& b) { \
    return a = a op b;                                                        \
  }
MSL_MATRIX_ASSIGNMENT(+)
MSL_MATRIX_ASSIGNMENT(-)
MSL_MATRIX_ASSIGNMENT(*)
#undef MSL_MATRIX_ASSIGNMENT

template <class T, int C, int R>
inline matrix<T, R, C> transpose(matrix<T, C, R> a) {
  matrix<T, R, C> result;
  for (int i = 0; i < C; ++i) {
    for (int j = 0; j < R; ++j) result.columns[j][i] = a.columns[i][j];
  }
  return result;
}

template <class T>
inline T determinant(matrix<T, 2, 2> m) {
  return m[0][0] * m[1][1] - m[1][0] * m[0][1];
}
template <class T>
inline T determinant(matrix<T, 3, 3> m) {
  return dot(m[0], cross(m[1], m[2]));
}
// By the minors of the first row.
template <class T>
inline T determinant(matrix<T, 4, 4> m) {
  T sum = 0;
  for (int i = 0; i < 4; ++i) {
    matrix<T, 3, 3> minor;
    for (int j = 0; j < 3; ++j) minor.columns[j] = m.columns[j < i ? j : j + 1].yzw;
    T term = m[i][0] * determinant(minor);
    sum += i % 2 ? -term : term;
  }
  return sum;
}
}  // namespace metal

#define MSL_MATRICES(type, n)                    \
  typedef metal::matrix<type, n, 2> type##n##x2; \
  typedef metal::matrix<type, n, 3> type##n##x3; \
  typedef metal::matrix<type, n, 4> type##n##x4;
MSL_MATRICES(float, 2)
MSL_MATRICES(float, 3)
MSL_MATRICES(float, 4)
MSL_MATRICES(half, 2)
MSL_MATRICES(half, 3)
MSL_MATRICES(half, 4)
#undef MSL_MATRICES
