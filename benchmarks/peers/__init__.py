"""One module per tool: how its documentation says to do what `features.py` asks, on two workers.

Each defines `PACKAGE` and some of

    stream(fn, source, spawn)   outputs of `fn` as they come; spawn=True: fresh interpreters
    ordered(fn, source)         the same, in source order
    two_stages(f, g, source)    two stages, a pool of two workers each
    expand(fn, source)          one to many: `fn` is a generator function
    percentiles(fn, source)     of a stage's service time, in seconds, by name ("p99")

What a tool has no call for is left out. Buffers are set small where there is a setting.
"""
