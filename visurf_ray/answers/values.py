"""Formulas as SymPy expressions: reading all of a LaTeX text, and comparing two expressions in a bounded time.

latex2sympy reads formulas and math-verify compares equations, sets and matrices. Numbers and functions are compared
here, because math-verify rounds numbers to six decimals, takes all tiny numbers for zero, and has no limit of time
outside the main thread.
"""

import ctypes
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import TypeVar

from latex2sympy2_extended.latex2sympy2 import latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import (
    Add,
    Basic,
    Eq,
    Expr,
    Float,
    Integral,
    Interval,
    MatrixBase,
    Mul,
    Pow,
    Product,
    Rational,
    S,
    Symbol,
    Tuple,
    binomial,
    cosh,
    exp,
    factorial,
    gamma,
    sinh,
)
from sympy.concrete.expr_with_limits import AddWithLimits, ExprWithLimits
from sympy.sets.sets import FiniteSet

T = TypeVar("T")

# Of processor time to judge one answer. Most take milliseconds; the first takes 0.2 s, a garbage collection as long.
_SECONDS = 0.5
_CONFIG = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_TWO_NUMBERS = re.compile(r"(?<![_^\d])\d+\s+\d|^\s*\{\d+\}\s*\{")  # latex2sympy adds "12 13" up
_EXACT = 25_000  # digits up to which large numbers are computed exactly
_LARGEST = 1e12  # digits beyond which numbers are not computed
_POINTS = 6  # at which two functions are compared

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: see `within_limit`


def same_value(given: str, truth: str, ratio: Expr = S.One) -> bool:
    """Return whether two formulas have the same value. It is False if one is not wholly a formula.

    It may take hours: call it inside of `within_limit`.

    Args:
        given: A formula in LaTeX or plain text.
        truth: Another one.
        ratio: What the value of `given` is multiplied by, for units.
    """
    try:
        return _same(_read(given), _read(truth), ratio)
    except Exception:  # SymPy raises what it likes where it cannot compute, a MemoryError for a number that is too long
        return False


def _same(given: Basic | None, truth: Basic | None, ratio: Expr) -> bool:
    if given is None or truth is None:
        return False
    if ratio != 1:
        if not isinstance(given, Expr):
            return False
        value = Rational(str(given)) if isinstance(given, Float) else given
        given = Mul(value, ratio, evaluate=isinstance(value, Rational))
    return _equal(given, truth)


@lru_cache(maxsize=256)  # all responses to an example are compared with one truth
def _read(text: str) -> Basic | None:
    """Return the expression that all of the text writes, or None if there is none."""
    if _TWO_NUMBERS.search(text):
        return None
    try:
        latex = normalize_latex(text.replace("°", "^{\\circ}"), _CONFIG)
        complex_numbers = should_treat_as_complex(latex)
        return latex2sympy(latex, is_real=not complex_numbers, convert_degrees=True, normalization_config=None)
    except Exception:  # the parser raises whatever its grammar stumbles over
        return None


def _equal(given: Basic, truth: Basic) -> bool:
    if isinstance(given, Expr) and isinstance(truth, Expr):
        if given == truth:
            return True
        if not given.free_symbols | truth.free_symbols:
            return _same_number(given, truth)
        alike = _same_function(given, truth)
        return _verify(given, truth) if alike is None else alike
    assigned, wanted = _assigned(given), _assigned(truth)
    if assigned and (wanted is None or wanted[0] == assigned[0]) and (wanted or isinstance(truth, Expr)):
        return _equal(assigned[1], wanted[1] if wanted else truth)
    if wanted and not assigned and isinstance(given, Expr):
        return _equal(given, wanted[1])
    if type(given) is type(truth) and isinstance(given, Tuple | Interval | FiniteSet):
        if len(given.args) != len(truth.args):
            return False
        if isinstance(given, FiniteSet):
            return _same_sets(list(given.args), list(truth.args))
        return all(map(_equal, given.args, truth.args))
    return _verify(given, truth)


def _assigned(value: Basic) -> tuple[Basic, Basic] | None:
    """Return the symbol and the value of "x = value", or None for other expressions."""
    return (value.lhs, value.rhs) if isinstance(value, Eq) and isinstance(value.lhs, Symbol) else None


def _same_sets(given: list[Basic], truth: list[Basic]) -> bool:
    for item in given:
        match = next((other for other in truth if _equal(item, other)), None)
        if match is None:
            return False
        truth.remove(match)
    return not truth


def _verify(given: Basic, truth: Basic) -> bool:
    if isinstance(given, MatrixBase) and isinstance(truth, MatrixBase):
        return given.shape == truth.shape and all(map(_equal, given.flat(), truth.flat()))
    if max(map(_size, (given, truth))) > _EXACT:
        return given == truth
    return bool(verify([truth], [given], timeout_seconds=None))


def _same_number(given: Expr, truth: Expr) -> bool:
    """Return whether two numbers are equal, or one is the other rounded to at least six decimals."""
    places = [_places(number) for number in (given, truth)]
    size = _size(given) + _size(truth)
    if size > _LARGEST or (size > _EXACT and (given.has(Add) or truth.has(Add))):
        return False  # they are different expressions, and cannot be computed exactly
    digits = 50 + int(size if size < _EXACT else 0)
    first, second = (_value(number, digits, {}) for number in (given, truth))
    if first is None or second is None:
        return False
    difference, largest = abs(first - second), max(abs(first), abs(second))
    written = [number for number in (given, truth) if number.has(Float) and not isinstance(number, Float)]
    slack = 14 if written else digits - 15  # decimals within formulas are binary fractions
    if difference <= _ten(-slack) * largest or (size < _EXACT and largest < _ten(-int(size + 20))):
        return True
    rounded = min(place for place in places if place is not None) if any(p is not None for p in places) else 0
    is_rounding = places[0] != places[1] and rounded >= 6
    return bool(is_rounding and difference < _ten(-rounded) and difference < largest / 100_000)


def _ten(power: int) -> Float:
    """Return 10 to a power."""
    return Float(10, 30) ** power


def _same_function(given: Expr, truth: Expr) -> bool | None:
    """Return whether two expressions have equal real values at random points; None if they cannot be computed."""
    if max(map(_size, (given, truth))) > _LARGEST:
        return False
    symbols = sorted(given.free_symbols | truth.free_symbols, key=str)
    slack = Float("1e-12" if given.has(Float) or truth.has(Float) else "1e-25", 30)
    draw = random.Random(0)
    compared = 0
    for _ in range(_POINTS):
        point = {symbol: Rational(draw.randint(-3000, 3000), 1009) for symbol in symbols}
        first, second = (_value(side, 40, point) for side in (given, truth))
        if first is None or second is None or not (first.is_real and second.is_real):
            continue
        if abs(first - second) > slack * max(abs(first), abs(second)):
            return False
        compared += 1
    return True if compared > 1 else None


def _value(number: Expr, digits: int, point: dict[Basic, Rational]) -> Expr | None:
    """Return the finite value with this many digits, or None if there is none."""
    if isinstance(number, Float):
        number = Rational(str(number))
    value = number.evalf(digits, subs=point, maxn=2 * digits)
    return value if value.is_number and value.is_finite and not value.free_symbols else None


def _places(number: Expr) -> int | None:
    """Return the decimal places of a number that is written as a decimal, else None."""
    if not isinstance(number, Float):
        return None
    exponent = Decimal(str(number)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else None


def _size(value: Basic) -> float:
    """Return about how many digits a number or its reciprocal has at most; symbols are numbers of one digit.

    It is infinite for sums, products and integrals that are too large to compute.
    """
    limited = [node for node in value.atoms(ExprWithLimits) if len(node.limits[0]) > 1]
    bounds = [_digits(bound, 1.0) for node in limited for limit in node.limits for bound in limit[1:]]
    size = _digits(value, max(bounds, default=1.0))
    return math.inf if limited and size > _EXACT else size


def _digits(value: Basic, symbol: float) -> float:
    """Return `_size`, where symbols are numbers of `symbol` digits."""
    if isinstance(value, Symbol):
        return symbol
    if isinstance(value, Float):
        return abs(math.log10(abs(value))) + 1 if value and value.is_finite else 1.0
    if isinstance(value, Rational):
        return max(abs(int(value.p)).bit_length(), int(value.q).bit_length()) * 0.302
    sizes = [_digits(argument, symbol) for argument in value.args]
    if not sizes:
        return 1.0
    if isinstance(value, Mul):
        return sum(sizes)
    if isinstance(value, Add):
        return max(sizes) + math.log10(len(sizes))
    largest = 10 ** sizes[-1] if sizes[-1] < 300 else math.inf
    if isinstance(value, Pow):
        return largest * max(sizes[0], 0.302)
    if isinstance(value, AddWithLimits | Product) and not isinstance(value, Integral):
        return largest * sizes[0]  # as many terms as the limit is large
    if isinstance(value, exp | sinh | cosh):
        return largest
    if isinstance(value, binomial):
        return 10 ** min(sizes[0], 300)
    if isinstance(value, factorial | gamma):
        return largest * (sizes[-1] + 1)
    return max(sizes)


class _TooLong(BaseException):
    """The limit is reached. Not an Exception, so that no library catches it."""


def within_limit(compare: Callable[[], T], otherwise: T) -> T:
    """Return the result of `compare`, or `otherwise` if it takes more than half a second of processor time.

    The time is that of the calling thread, which may be any.
    Such calls must not be nested.
    """
    thread = threading.get_ident()
    clock = time.pthread_getcpuclockid(thread)
    end = time.clock_gettime(clock) + _SECONDS
    over, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        # Raised again every 0.1 s: Python drops an exception raised inside a `__del__` or a callback of its collector.
        while not over.wait(max(0.1, left := end - time.clock_gettime(clock))):
            with lock:
                if left <= 0.1 and not over.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLong))

    def end_watch() -> None:
        with lock:
            over.set()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        try:
            return compare()
        finally:
            end_watch()
    except _TooLong:
        end_watch()  # the exception may have come before the first call of `end_watch` did anything
        return otherwise
    finally:
        watcher.join()
