#ifndef SLIMDEPLOY_LAID_OUT_H
#define SLIMDEPLOY_LAID_OUT_H

#include "weight.h"

// Whether every byte of the weight is where layout.h says, found by writing it value by value.
bool is_laid_out(const slimdeploy_packed &packed, const slimdeploy_weight &weight);

#endif
