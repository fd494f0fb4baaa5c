// What this library was built for.
#include "parallel.h"

// Floats in a vector.
DIASTOLE_EXPORT int diastole_lanes() { return diastole::kLanes; }

// Whether kernels may use more than one thread: whether an OpenMP runtime was there when the library was loaded.
DIASTOLE_EXPORT int diastole_threaded() { return GOMP_parallel != nullptr; }
