__version__ = "0.1.0"


def load_agent(name="generic"):
    "The agent that comes with the package, or one from a file; see `neon.compression.planner.load_generic`."
    from .compression.planner import load_generic
    return load_generic(name)
