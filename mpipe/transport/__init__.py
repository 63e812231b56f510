"""Bytes between processes: channels of frames in shared memory, and the board of counters."""
