"""Looks into traced programs, for tests of `align_jax`."""


def largest_array(jaxpr):
    """The largest number of elements of an intermediate result, also inside calls."""
    inner = [
        part
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for part in (value if isinstance(value, list | tuple) else [value])
    ]
    inner = [getattr(part, "jaxpr", part) for part in inner]
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    return max([0, *sizes, *(largest_array(j) for j in inner if hasattr(j, "eqns"))])
