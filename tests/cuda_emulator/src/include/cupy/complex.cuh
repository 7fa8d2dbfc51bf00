// CuPy puts its complex numbers before every kernel; none of the tests uses them.
#pragma once
template <class T> struct complex {
    T re, im;
};
