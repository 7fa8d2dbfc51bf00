// CuPy prepends its complex numbers to every kernel; the tests do not use them.
#pragma once
template <class T> struct complex {
    T re, im;
};
