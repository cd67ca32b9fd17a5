"""Looking into traced programs."""

import math


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def flops(jaxpr):
    """FLOP of all products and convolutions of a jaxpr: two for each multiplication and addition.

    The body of a scan counts for each of its steps. A convolution counts the products with its
    padding, too.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [variable.aval.shape for variable in equation.invars]
        if name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.params["dimension_numbers"].rhs_spec  # output channels, input channels, spatial axes
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[1][axis] for axis in kernel[1:])
        times = equation.params["length"] if name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)  # of a closed one
                if hasattr(inner, "eqns"):
                    total += times * flops(inner)
    return total
