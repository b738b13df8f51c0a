"""Units of measurement behind a number: "5 kg", "12 cm^2", "30°", "$12", "60 km/h", "3 apples"."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from sympy import Expr, Integer, Rational, S, pi

# Each line: the dimension, what it is in the dimension's base unit, and its names. A plural -s is understood.
_TABLE = """
length 1/10**9 nm nanometer nanometre
length 1/10**6 µm um micrometer micrometre micron
length 1/1000 mm millimeter millimetre
length 1/100 cm centimeter centimetre
length 1/10 dm decimeter decimetre
length 1 m meter metre
length 1000 km kilometer kilometre
length 254/10000 in inch inches
length 3048/10000 ft foot feet
length 9144/10000 yd yard
length 1609344/1000 mi mile
mass 1/10**6 mg milligram
mass 1/1000 g gram gm
mass 1 kg kilogram kilo
mass 1000 t ton tonne
mass 45359237/10**8 lb lbs pound
mass 45359237/16/10**8 oz ounce
time 1/10**6 µs us microsecond
time 1/1000 ms millisecond
time 1 s sec second
time 60 min minute
time 3600 h hr hour
time 86400 d day
time 604800 wk week
month 1 mo month
month 12 y yr year
volume 1/10**6 ml mL milliliter millilitre cc
volume 1/10**5 cl cL centiliter centilitre
volume 1/10**4 dl dL deciliter decilitre
volume 1/1000 l L liter litre
angle 1 ° deg degree
angle 180/pi rad radian
percent 1 % percent pct
celsius 1 °C celsius
fahrenheit 1 °F fahrenheit
kelvin 1 K kelvin
speed 1609344/3600/1000 mph
speed 1/36*10 kmh kmph kph
dollar 1/100 ¢ cent
dollar 1 $ dollar usd USD
euro 1 € euro eur EUR
pound_sterling 1 £ gbp GBP
yen 1 ¥ yen jpy JPY
rupee 1 ₹ rupee rs Rs inr INR
current 1/1000 mA milliampere
current 1 A amp ampere
voltage 1/1000 mV millivolt
voltage 1 V volt
voltage 1000 kV kilovolt
power 1/1000 mW milliwatt
power 1 W watt
power 1000 kW kilowatt
power 10**6 MW megawatt
resistance 1 Ω ohm
resistance 1000 kΩ kilohm
energy 1 J joule
energy 1000 kJ kilojoule
calorie 1 cal calorie
calorie 1000 kcal kilocalorie
force 1 N newton
force 1000 kN kilonewton
pressure 1 Pa pascal
pressure 1000 kPa kilopascal
pressure 10**6 MPa megapascal
frequency 1 Hz hertz
frequency 1000 kHz kilohertz
frequency 10**6 MHz megahertz
frequency 10**9 GHz gigahertz
substance 1/1000 mmol millimole
substance 1 mol mole
information 1 byte B
information 1000 KB kB kilobyte
information 10**6 MB megabyte
information 10**9 GB gigabyte
"""
_COMPOSED = {"volume": {"length": 3}, "speed": {"length": 1, "time": -1}}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_DIVIDED = re.compile(r"\s*/\s*|\s+per\s+")
_TERM = re.compile(r"(?P<name>[^\W\d_]+|°[CF]?|[%$€£¥¢₹])(?:\s*\^?\s*\{?\s*(?P<power>-?\d)\s*\}?)?")
_SIGNS = "°%$€£¥¢₹"

# A number, without letters other than those of LaTeX commands, and what stands behind it.
_NUMBER = rf"(?:\\[A-Za-z]+|[^A-Za-z\\{_SIGNS}])*(?:[\d)}}]|\\pi)"
_MEASURE = re.compile(
    rf"(?P<number>{_NUMBER})(?P<space>\s*)"
    rf"(?P<unit>(?:[^\W\d_]|[{_SIGNS}])(?:[^\W_]|[{_SIGNS}\s/.·*^{{}}-])*)",
)
_PRODUCT = re.compile(r"(?<=[A-Za-z])\s*\\cdot\s*(?=[A-Za-z])")  # of units
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp)(?![a-z])")
_PRICE = re.compile(r"(?P<sign>-?)\s*(?P<unit>[$€£¥₹]|(?:USD|EUR|GBP|JPY|INR)\b)\s*(?P<number>-?[\d.].*)")
_PARTS = re.compile(r"\d+(?:\.\d+)? ?[A-Za-z]+(?:,? ?\d+(?:\.\d+)? ?[A-Za-z]+)+")  # "1 h 30 min", "5 ft 3 in"
_PART = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")


@dataclass(frozen=True)
class Unit:
    """A unit.

    Attributes:
        dimension: What it measures: base quantities with their powers, or its own words if they are unknown.
        factor: How many base units it is.
        sure: Whether it must be a unit: the m in "5m" may be a variable.
    """

    dimension: frozenset[tuple[str, int]]
    factor: Expr = S.One
    sure: bool = True

    @property
    def fraction(self) -> Expr | None:
        """What a percentage or an angle is without a unit: 1/100 for %, π/180 for °; None for other units."""
        if self.dimension == {("percent", 1)}:
            return Rational(1, 100)
        return self.factor * pi / 180 if self.dimension == {("angle", 1)} else None


def split(text: str) -> tuple[str, Unit | None]:
    """Return the formula of an answer without its unit, and the unit, or None if it has none.

    The words after a number are a unit of their own kind if they are not known ("3 apples"). Several measures, as in
    "1 h 30 min", are added up.
    """
    price = _PRICE.fullmatch(text)
    if price:
        formula, unit = split(price["sign"] + price["number"])
        return formula, unit or _known(price["unit"])
    if summed := _sum(text):
        return summed
    found = _MEASURE.fullmatch(_PRODUCT.sub("·", text))
    if found is None or _FUNCTION.search(found["number"]):  # the ° in "sin 30°" belongs to the 30
        return text, None
    words = " ".join(found["unit"].split())
    unit = _known(words)
    if unit is None:
        if not found["space"] or not re.fullmatch(r"[^\W\d_]{3,}([ -][^\W\d_]+)*", words):
            return text, None
        unit = Unit(frozenset({(" ".join(map(_singular, words.lower().split())), 1)}))
    if not found["space"] and len(words) == 1 and words.isalpha():
        unit = Unit(unit.dimension, unit.factor, sure=False)
    return found["number"].strip(), unit


def _sum(text: str) -> tuple[str, Unit] | None:
    """Return the sum of measures of one dimension, the largest unit first, in this unit; None for another text."""
    if not _PARTS.fullmatch(text):
        return None
    found = [(Rational(number), _known(unit)) for number, unit in _PART.findall(text)]
    known = [(number, unit) for number, unit in found if unit]
    first = known[0][1] if known else None
    falling = all(one[1].factor > other[1].factor for one, other in pairwise(known))
    if (
        first is None
        or len(known) < len(found)
        or not falling
        or {unit.dimension for _, unit in known} != {first.dimension}
    ):
        return None
    return str(sum((number * unit.factor for number, unit in known), S.Zero) / first.factor), first


@cache
def _names() -> dict[str, tuple[str, Expr]]:
    names = {}
    for line in _TABLE.split("\n")[1:-1]:
        dimension, factor, *known = line.split()
        names.update(dict.fromkeys(known, (dimension, _factor(factor))))
    return names


def _factor(text: str) -> Expr:
    """Return the value of a factor of the table: numbers with *, ** and /."""
    value: Expr = Integer(1)
    for sign, number, power in re.findall(r"(^|(?<!\*)\*|/)(\d+|pi)(?:\*\*(\d+))?", text):
        term = pi if number == "pi" else Integer(number) ** int(power or 1)
        value = value / term if sign == "/" else value * term
    return value


def _known(words: str) -> Unit | None:
    """Return the unit that the words name, or None if one of them is unknown."""
    above, *below = _DIVIDED.split(words)
    dimensions: Counter[str] = Counter()
    factor: Expr = Integer(1)
    for part, sign in [(above, 1), *((part, -1) for part in below)]:
        power = 0
        for term in re.split(r"[\s·*.]+", part.strip()):
            if not term:
                continue
            if term.lower() in _POWERS:
                power = _POWERS[term.lower()]
                continue
            read = _TERM.fullmatch(term)
            found = _lookup(read["name"]) if read else None
            if read is None or found is None:
                return None
            power = sign * (int(read["power"] or 1) * (power or 1))
            for name, count in _COMPOSED.get(found[0], {found[0]: 1}).items():
                dimensions[name] += count * power
            factor *= found[1] ** power
            power = 0
        if power:
            return None
    return Unit(frozenset((name, count) for name, count in dimensions.items() if count), factor)


def _lookup(name: str) -> tuple[str, Expr] | None:
    names = _names()
    forms = [name, name.lower(), _singular(name.lower())] if len(name) > 1 else [name]
    return next((names[form] for form in forms if form in names), None)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
