"Small dense networks within an accuracy budget."
__version__ = "0.1.0"


def __getattr__(name: str):
    "`neon.load_planner`: the planner that comes with the package, found when it is asked for."
    if name != "load_planner": raise AttributeError(f"module 'neon' has no attribute {name!r}")
    from .compression.planner import load_planner
    return load_planner
