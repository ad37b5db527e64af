"""The usual scheme (lru.c), loaded with BCC by a child process (load.py)."""
