"""The Metal language: its text, and the C++ that clang takes for it."""
