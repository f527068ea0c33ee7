"""One module per family of architectures; each has the models of its family in `MODELS`.

To add one: write its function with the pieces of `zoo.layers`, and name a model of it in its
module's MODELS. llama.cpp's `src/models/<name>.cpp` says what it requires.
"""
