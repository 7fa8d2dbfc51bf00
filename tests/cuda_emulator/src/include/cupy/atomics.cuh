// The shim has atomicAdd and the like as templates, which CuPy's overloads for old architectures would make ambiguous.
#pragma once
