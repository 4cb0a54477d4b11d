#ifndef SLIMDEPLOY_GIVEN_BACK_H
#define SLIMDEPLOY_GIVEN_BACK_H

// Maps a file of 64 pages of ones, writes to one page and gives all of them back: what was written must stay, the
// others must leave memory and read as before. Prints what is not so, and returns 1 then.
int check_given_back_pages(const char *file);

#endif
