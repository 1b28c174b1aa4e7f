from apportion.search.export.gguf.file import Gguf

__all__ = ["Gguf"]
