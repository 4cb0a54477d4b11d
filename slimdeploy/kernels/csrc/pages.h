// Memory that a file is mapped to.

#ifndef SLIMDEPLOY_PAGES_H
#define SLIMDEPLOY_PAGES_H

#include <cstddef>

namespace slimdeploy {

// Takes the whole pages between `begin` and `begin + bytes` out of memory if they are mapped from a file: whoever reads
// them again gets them from the file. Does nothing for any other memory, whose contents would be lost.
void give_back_file_pages(const void *begin, size_t bytes);

}  // namespace slimdeploy

#endif
