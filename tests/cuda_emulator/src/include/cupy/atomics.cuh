// The shim's atomicAdd etc. are templates, which CuPy's overloads for old architectures would make ambiguous.
#pragma once
