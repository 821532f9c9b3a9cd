"""The compiled core: C++ sources and how they are built."""
