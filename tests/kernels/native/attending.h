#ifndef SLIMDEPLOY_ATTENDING_H
#define SLIMDEPLOY_ATTENDING_H

// Compares attention by one instruction set, or by all that this CPU runs (NULL), with float64, on shapes of all kinds
// and in memory that ends where it says; and gives it descriptions that make no sense. Returns 1 on any failure.
int check_attention(const char *set);

#endif
