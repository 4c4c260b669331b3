"""A server of a model and its memories, with the interface of OpenAI's."""
