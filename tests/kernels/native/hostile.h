#ifndef SLIMDEPLOY_HOSTILE_H
#define SLIMDEPLOY_HOSTILE_H

// Gives the C interface packed weights that are not what they say, and calls that make no sense: each must be refused
// with a sentence. Prints what was not, and returns 1 then.
int check_hostile_input();

#endif
