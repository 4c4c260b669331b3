"""From C++ to a library that is watched: the compiler, and what is put into its code."""
