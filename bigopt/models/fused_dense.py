"""The source of a network's forward and backward pass as one compiled call, with the products of NumPy's own BLAS.

Between two products the interpreter does little, but does it for every layer, twice, and in one thread at a time. So
the whole gradient sum of a block is one function that calls the BLAS which NumPy has loaded, by address
(`bigopt.core.compiled.blas`), as `numpy.matmul` does, with what `bigopt.models.fused_layers` computes between the
products::

    v_l = z_{l-1} W_l,    z_l = max(v_l + b_l, 0)
    delta_L, loss = cross_entropy(z_{L-1} W_L, b_L, y, s)
    grad W_l = z_{l-1}^T delta_l,    grad b_l = 1^T delta_l,    delta_{l-1} = delta_l W_l^T where z_{l-1} > 0, else 0

The bits are those of NumPy's products with the same kernels between them (`bigopt.models.fused.layered_sum`). NumPy
calls another routine for a matrix of one row or one column: such a block or network has no kernel here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bigopt.models.fused_layers import make_cross_entropy, make_gate, make_relu


def signature(dtype: str) -> tuple[str, ...]:
    """Return the types of the arguments of `make_network`'s kernel."""
    floats = f"{dtype}[::1]"
    return (
        *(f"{dtype}[:,::1]", "int64[::1]", "float64[::1]", floats, floats, "float64[::1]"),
        *("int64[::1]", floats, "intp", "intp"),
    )


def room(rows: int, widths: tuple[int, ...]) -> int:
    """Return the entries of working memory that a block needs; `widths` from the input to the output."""
    return rows * (1 + widths[-1] + 2 * sum(widths[1:-1]))


def make_network(dtype: str, integer: int) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(X, y, s, params, grad, sums, widths, work, gemm, gemv)``.

    X, shape (rows, d), y and s, shape (rows,) or (0,) for ones, params, and `grad` of the same length, which is
    written; (loss, weight) are added to `sums`; `widths` holds 1 or 0 for intercepts or none, then d, the hidden widths
    and the number of outputs; `work` is `room`; gemm and gemv are addresses of cblas routines.

    Parameters
    ----------
    dtype : str
        Of the block.
    integer : int
        Bits of the integers that BLAS takes.
    """
    from numba import njit

    relu, gate, top = (njit(make(dtype)[0], error_model="numpy") for make in (make_relu, make_gate, make_cross_entropy))
    table = make_table()
    forward, outer, back = (make_product(integer, a, b) for a, b in ((False, False), (True, False), (False, True)))
    column_sums = make_column_sums(integer)

    def network(
        X: Any, y: Any, s: Any, params: Any, grad: Any, sums: Any, widths: Any, work: Any, gemm: Any, gemv: Any
    ) -> None:
        rows, layers, bias = X.shape[0], widths.shape[0] - 2, widths[0]
        ones = work[work.shape[0] - rows :]
        for r in range(rows):
            ones[r] = 1
        at = 0  # of the layer's parameters
        here, below = 0, 0  # of its output, and of its input, in the working memory
        for k in range(layers):
            n, m = widths[1 + k], widths[2 + k]
            v, W, b = table(work, here, rows, m), table(params, at, n, m), params[at + n * m : at + n * m + bias * m]
            if k == 0:
                forward(gemm, X, W, v)
            else:
                forward(gemm, table(work, below, rows, n), W, v)
            if k < layers - 1:
                relu(v, b)
            else:
                top(v, b, y, s, sums)
            at += n * m + bias * m
            below, here = here, here + rows * m
        delta = below  # of dloss/dv, in the working memory
        for j in range(layers):
            k = layers - 1 - j
            n, m = widths[1 + k], widths[2 + k]
            at -= n * m + bias * m
            d, G = table(work, delta, rows, m), table(grad, at, n, m)
            if k > 0:
                below = 0
                for i in range(k - 1):
                    below += rows * widths[2 + i]
                z = table(work, below, rows, n)
                outer(gemm, z, d, G)
            else:
                outer(gemm, X, d, G)
            if bias:
                column_sums(gemv, ones, d, grad[at + n * m : at + n * m + m])
            if k > 0:
                e = table(work, here, rows, n)
                back(gemm, d, table(params, at, n, m), e)
                gate(e, table(work, below, rows, n))
                delta, here = here, here + rows * n

    return network, frozenset()


def make_table() -> Any:
    """Return ``table(flat, start, rows, width)``: entries of a vector as a matrix, which shares their memory."""
    from numba import types
    from numba.extending import intrinsic
    from numba.np.arrayobj import populate_array

    def table(_typing: Any, flat: Any, _start: Any, _rows: Any, _width: Any) -> Any:
        kind = types.Array(flat.dtype, 2, "C")

        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            array = context.make_array(given.args[0])(context, builder, values[0])
            made = context.make_array(kind)(context, builder)
            start, rows, width = values[1:]
            item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(flat.dtype)))
            populate_array(
                made,
                data=builder.gep(array.data, [start]),
                shape=[rows, width],
                strides=[builder.mul(width, item), item],
                itemsize=item,
                meminfo=None,
            )
            return made._getvalue()

        return kind(flat, types.intp, types.intp, types.intp), generate

    return intrinsic(table)


_ROWS, _PLAIN, _TRANSPOSED = 101, 111, 112
"""CBLAS's words for matrices row by row, taken as they are, and transposed."""


def make_product(integer: int, left: bool, right: bool) -> Any:
    """Return ``product(gemm, a, b, c)``: c = a b, by the routine at an address; `left`, `right`: a, b are transposed.

    Parameters
    ----------
    integer : int
        As in `make_network`.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def product(_typing: Any, _gemm: Any, a: Any, b: Any, c: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            A, B, C = (context.make_array(given.args[k])(context, builder, values[k]) for k in (1, 2, 3))
            (a0, a1), (_, b1), (m, n) = (cgutils.unpack_tuple(builder, array.shape) for array in (A, B, C))
            word, whole = ir.IntType(32), ir.IntType(integer)
            item = A.data.type.pointee

            def size(value: Any) -> Any:
                return value if integer == 64 else builder.trunc(value, whole)

            order, *how = (
                ir.Constant(word, which) for which in (_ROWS, *(_TRANSPOSED if t else _PLAIN for t in (left, right)))
            )
            one, nothing = ir.Constant(item, 1.0), ir.Constant(item, 0.0)
            flat = [order, *how, size(m), size(n), size(a0 if left else a1), one]
            flat += [A.data, size(a1), B.data, size(b1), nothing, C.data, size(n)]
            _call(builder, values[0], flat)
            return context.get_dummy_value()

        return types.void(types.intp, a, b, c), generate

    return intrinsic(product)


def make_column_sums(integer: int) -> Any:
    """Return ``column_sums(gemv, ones, a, out)``: out = ones^T a, by the routine at an address."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def column_sums(_typing: Any, _gemv: Any, ones: Any, a: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            U, A, out = (context.make_array(given.args[k])(context, builder, values[k]) for k in (1, 2, 3))
            rows, columns = cgutils.unpack_tuple(builder, A.shape)
            word, whole = ir.IntType(32), ir.IntType(integer)
            item = A.data.type.pointee
            if integer != 64:
                rows, columns = builder.trunc(rows, whole), builder.trunc(columns, whole)
            step = ir.Constant(whole, 1)
            order, how = ir.Constant(word, _ROWS), ir.Constant(word, _TRANSPOSED)
            one, nothing = ir.Constant(item, 1.0), ir.Constant(item, 0.0)
            flat = [order, how, rows, columns, one, A.data, columns, U.data, step, nothing, out.data, step]
            _call(builder, values[0], flat)
            return context.get_dummy_value()

        return types.void(types.intp, ones, a, out), generate

    return intrinsic(column_sums)


def _call(builder: Any, address: Any, values: list[Any]) -> None:
    """Call a C function that returns nothing."""
    from llvmlite import ir

    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(builder.inttoptr(address, kind.as_pointer()), values)
