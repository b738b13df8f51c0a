"""The reward for mathematical answers: finding the answer, comparing it, and threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from visurf_ray.answers.formulas import equal, last_boxed
from visurf_ray.answers.values import within_limit
from visurf_ray.rewards import load_reward

THOUGHT = "<think>reason</think>"


@pytest.mark.parametrize(
    ("response", "accuracy", "thinking"),
    [
        (THOUGHT + r"so \boxed{2}", 1.0, 1.0),
        (THOUGHT + "<answer>2</answer>", 1.0, 1.0),
        (THOUGHT + "<answer>\n2\n</answer>\n", 1.0, 1.0),
        (THOUGHT + r"<answer>\boxed{2}</answer>", 1.0, 1.0),
        (r"so \boxed{2}", 1.0, 0.0),
        ("<answer>2</answer>", 1.0, 0.0),
        (THOUGHT + "2", 0.0, 0.0),  # no place for an answer
        (THOUGHT + r"\boxed{3}", 0.1, 1.0),  # for its form
        (THOUGHT + "<answer>3</answer>", 0.0, 1.0),
        (THOUGHT + r"\boxed{}", 0.1, 1.0),
        (THOUGHT + r"\boxed{2", 0.0, 0.0),
        (THOUGHT + r"\boxed {2}", 1.0, 1.0),
        (THOUGHT + r"\boxed{\boxed{2}}", 1.0, 1.0),
        (THOUGHT + r"\boxed{3} \{ \boxed{2}", 1.0, 0.0),
        (THOUGHT + r"\boxed{3} or \boxed{2}", 1.0, 0.0),  # the last counts, but two answers are no answer's form
        (THOUGHT + r"\boxed{2} or \boxed{3}", 0.1, 0.0),
        (THOUGHT + r"\boxed{2}. So \boxed{2}", 1.0, 1.0),
        (THOUGHT + "<answer>3</answer><answer>2</answer>", 1.0, 0.0),
        (THOUGHT + r"<answer>\boxed{3}, \boxed{2}</answer>", 1.0, 0.0),
        (THOUGHT + THOUGHT + r"\boxed{2}", 1.0, 0.0),
        (r"<think><answer>3</answer></think>\boxed{2}", 1.0, 1.0),
        (r"<think>\boxed{3}</think><answer>2</answer>", 1.0, 1.0),  # what stands after the thinking counts
        (r"<think>\boxed{3}</think>\boxed{2}", 1.0, 1.0),
        (r"<think>\boxed{2}</think>", 1.0, 0.0),  # better than none
        (r"So <think>a</think>\boxed{2}", 1.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_answer_is_found_in_every_form(response, accuracy, thinking):
    parts = load_reward("math")(response, "2").parts
    assert parts == {"accuracy": accuracy, "thinking_format": thinking}


def test_the_credit_for_a_box_is_an_option():
    assert load_reward("math", boxed_credit=0.0)(r"\boxed{3}", "2").total == 0.0


@pytest.mark.parametrize("truth", ["2", r"\boxed{2}", "<answer>2</answer>", "$2$"])
def test_forms_of_the_truth(truth):
    assert load_reward("math")(r"\boxed{2.0}", truth).total == 1.0


@pytest.mark.parametrize("truth", ["", " ", r"\boxed{}", "<answer></answer>"])
def test_an_empty_ground_truth_is_refused(truth):
    with pytest.raises(ValueError, match="is empty"):
        load_reward("math")(r"\boxed{2}", truth)


PAIRS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{2}{4}", "1/2", True),
    ("1,000", "1000", True),
    (".5", "0.5", True),
    (".5", "5", False),
    ("5.", "5", True),
    ("x=2", "2", True),
    ("2x+1", "1+2x", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("(1,2)", "(1, 2)", True),
    ("(2,1)", "(1,2)", False),
    (r"x²", r"x^2", True),
    (r"x²", "x2", False),
    (r"12\text{ cm}", "12", True),
    (r"30^\circ", "30", True),
    (r"50\%", "50%", True),
    ("３", "3", True),
    ("-1", "1", False),
    ("a", "A", True),
    ("(A)", "A", True),
    ("B", "A", False),
    (r"\text{Yes.}", "yes", True),
    ("on", "No", False),  # products are equal, words are not
    ("二", "二", True),
    ("", "2", False),
]


@pytest.mark.parametrize(("given", "truth", "same"), PAIRS)
def test_equal_and_unequal_answers(given, truth, same):
    assert equal(given, truth) is same


def test_every_thread_scores_alike():
    reward = load_reward("math")
    responses = [(THOUGHT + rf"\boxed{{{given}}}", truth) for given, truth, _ in PAIRS]
    here = [reward(*pair) for pair in responses]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda pair: reward(*pair), responses)) == here
    assert [earned.parts["accuracy"] == 1.0 for earned in here] == [same for *_, same in PAIRS]


# Ground truths, and answers that a careful person marks as right.
RIGHT = [
    ("0.001", "10^-3"),
    ("1000000000000", "10^12"),
    ("5 km", r"5\times 10^3\text{ m}"),
    ("5 m^3", "5000 L"),
    ("12", r"\$12"),
    ("1,200", r"\$1,200"),
    ("$12", "12"),
    ("12 dollars", r"\$12"),
    ("12 cents", r"\$0.12"),
    ("$2$", "2"),
    ("$12", "$12"),
    (r"\$5.50", "5.5"),
    ("1000", "1,000"),
    ("1,000,000", "1000000"),
    ("1000000", "1{,}000{,}000"),
    ("1000", r"1\,000"),
    ("12000", "12 000"),
    ("(1,000)", "1000"),
    ("(1,000)", "(1000)"),
    ("(100,200)", "(100, 200)"),
    ("6:30 pm", "6:30 p.m."),
    ("6:30 pm", "6:30 PM"),
    ("6:30 pm", "18:30"),
    ("6:30", "6:30 pm"),
    ("6 pm", "6:00 PM"),
    ("6:30 pm", "06:30 pm"),
    ("12:00 am", "0:00"),
    ("5", "5 kg"),
    ("5 kg", "5"),
    ("5 kg", r"5\text{ kg}"),
    ("5 kg", "5kg"),
    ("5 kg", "5000 g"),
    ("5 km", "5000 m"),
    ("5 cm", "50 mm"),
    ("5 m^2", r"5\,\mathrm{m}^2"),
    ("12 cm²", "12 cm^2"),
    ("12 square meters", "12 m^2"),
    ("60 km/h", "60 kilometers per hour"),
    ("60 km/h", r"60\text{ km/h}"),
    ("10 m/s", "36 km/h"),
    ("3 apples", "3"),
    ("3 apples", "3 apple"),
    ("3", "3 apples"),
    ("90 minutes", "1.5 hours"),
    ("1 h 30 min", "90 min"),
    ("1 hour and 30 minutes", "1.5 hours"),
    ("5 ft 3 in", "63 inches"),
    ("2 m 50 cm", "2.5 m"),
    ("USD 12", r"\$12"),
    ("noon", "12 pm"),
    ("5", r"\approx 5"),
    ("5", "= 5"),
    ("2 hours", "120 min"),
    ("5 L", "5000 mL"),
    ("1 L", "1000 cm^3"),
    ("30", "30°"),
    ("30°", "30"),
    ("30°", r"30^\circ"),
    ("30°", "30 degrees"),
    (r"\frac{\pi}{6}", "30°"),
    ("30°", r"\pi/6"),
    ("50%", "50"),
    ("50%", r"50\%"),
    ("0.5", "50%"),
    ("50%", "0.5"),
    ("50%", "50 percent"),
    ("50%", r"\frac{1}{2}"),
    ("1e-10", "10^{-10}"),
    ("0.0000000001", "1e-10"),
    (r"1.5\times 10^{-20}", "1.5e-20"),
    ("1.5e-20", "0.000000000000000000015"),
    (r"\frac{1}{2^{99}}", "2^{-99}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2004!}"),
    (r"\frac{1}{2004!}", r"\frac{2005}{2005!}"),
    ("10^{100}", r"10^{50}\cdot 10^{50}"),
    ("9^{9^9}", "9^{9^{9}}"),
    (r"4\sqrt{2}", r"4\sqrt(2)"),
    (r"4\sqrt{2}", "4sqrt(2)"),
    (r"4\sqrt{2}", "4√2"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"2\pi", "2π"),
    (r"2\pi", "2pi"),
    (r"\pi", "3.141593"),
    ("1/3", "0.333333"),
    ("1/3", "0.33333333"),
    ("3/2", "1 1/2"),
    (r"1\frac{1}{2}", "1.5"),
    (r"-\frac{3}{2}", r"-1\frac{1}{2}"),
    ("3/2", "1½"),
    ("-1.5", "-1 1/2"),
    ("x²", "x^2"),
    ("2x+1", "1+2x"),
    ("(x+1)^2", "x^2+2x+1"),
    ("x=2", "2"),
    ("2", "x=2"),
    ("x=2", "x = 2.0"),
    (r"\sin 30^\circ", "1/2"),
    (r"\frac{1}{2}", r"\sin 30^\circ"),
    ("3,-3", r"\pm 3"),
    ("3 and 5", "3, 5"),
    ("{1,2}", "{2,1}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1.0\\2\end{pmatrix}"),
    ("[1,2)", "[1, 2)"),
    ("B", "B. 12"),
    ("B", "(B)"),
    ("B", "B: 12 cm"),
    ("B", "B) 12"),
    ("B. 12", "B"),
    ("B. 12", "12"),
    ("12", "B. 12"),
    ("12 cm", "B: 12 cm"),
    ("(B)", "B"),
    ("B", "Option B"),
    ("B", "The answer is B"),
    ("B", "**B**"),
    ("B", r"\text{B}"),
    ("B", "b"),
    ("B", "B."),
    ("B", "B - 12"),
    ("B", "[B]"),
    ("B", r"\textbf{(B)}"),
    ("B", r"\textbf{(B)}\ 12"),
    ("Yes", "yes."),
    ("left", "left"),
    ("100!", "100!"),
    ("0", "0.0"),
    ("5 m", "5m"),
    ("5", "5m"),
    ("5 kg", "5 KG"),
    ("5", "5 units"),
    ("2:3", "2/3"),
    ("-5", "−5"),
    ("1.0", "1"),
    ("0.75", "3/4"),
    ("H2O", "H2O"),
    ("5 o'clock", "5:00"),
    (r"\infty", "∞"),
    ("€5", "5 euros"),
    ("5 ft", "60 inches"),
    ("x < 5", "5 > x"),
    ("y=2x+1", "y = 1+2x"),
    (r"\frac{10}{3}\text{ cm}", r"\frac{10}{3}"),
    (r"8\pi \text{ cm}^2", "8π cm²"),
    (r"8\pi", "8π cm²"),
    (r"5 \text{ or } 6", "6, 5"),
    ("10^{10000}", "(10^{100})^{100}"),
    (r"25\%", "0.25"),
    ("1 1/2 hours", "90 minutes"),
    (r"\log_2 8", "3"),
    ("5!", "120"),
    ("3.50", "$3.50"),
    (r"2.5 \times 10^3", "2500"),
    ("2,500 m", "2.5 km"),
    ("$1,200.50", "1200.5"),
    ("12:05 AM", "00:05"),
    (r"18 \text{ years old}", "18"),
    ("0.5 kg", "500 grams"),
    ("20°C", "20 °C"),
    ("20°C", r"20^\circ C"),
    ("20°C", "20"),
    (r"-3 \frac12", "-3.5"),
    ("6", "2 · 3"),
    ("6", "2×3"),
    ("6.02e23", "6.02 × 10²³"),
    ("1e-10", "10⁻¹⁰"),
    ("9.8 m/s^2", "9.8 m s⁻²"),
    ("9.8 m/s^2", r"9.8\text{ m}\cdot\text{s}^{-2}"),
    ("3 million", "3,000,000"),
    ("1500000", "$1.5 million"),
    ("1.5 million", "1500 thousand"),
    ("2 million people", "2000000"),
    (r"\emptyset", "∅"),
    (r"\emptyset", r"\varnothing"),
]

# Ground truths, and answers that a careful person marks as wrong.
WRONG = [
    ("6:30 pm", "6:30 am"),
    ("6:30 pm", "6:30"),
    ("6 pm", "6 am"),
    ("7:15", "7:51"),
    ("12:00 pm", "12:00 am"),
    ("5 kg", "5 km"),
    ("6 cm", "6 m"),
    ("6 cm", "6 mm"),
    ("5 m/s", "5 km/h"),
    ("12 cm^2", "12 cm^3"),
    ("3 hours", "3 minutes"),
    ("1 h 30 min", "90 h"),
    ("1 h 30 kg", "90 min"),
    ("30 min 1 h", "1 h"),
    ("noon", "12 am"),
    ("30°C", "30°F"),
    ("$5", "€5"),
    ("$5", "5 cents"),
    ("5 MW", "5 mW"),
    ("3 apples", "3 oranges"),
    ("5 kg", "500 g"),
    ("5", "500 cm"),
    ("1e-10", "1e-12"),
    ("10^{-20}", "10^{-21}"),
    ("10^{100}", "10^{99}"),
    ("100!", "101!"),
    ("2^{1000}", "2^{1001}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("0", "1e-30"),
    ("1e-30", "0"),
    ("0.0000001", "0.0000002"),
    ("1.0000001", "1.0000002"),
    ("1", "1.0000001"),
    ("9^{9^9}", "9^{9^8}"),
    ("9^{9^{9^9}}", "9^{9^{9^8}}"),
    ("2", "9^{9^{9^9}}"),
    ("10^{-20}x", "10^{-21}x"),
    ("(10^{-20},1)", "(10^{-21},1)"),
    ("x=10^{-20}", "x=10^{-21}"),
    ("10^{10000}", "10^{10001}"),
    ("10^{10000}", "10^{10000}+1"),
    ("4", r"4\sqrt(2)"),
    ("4", r"4\sqrt"),
    ("4", "4 +"),
    ("2", "2x+"),
    ("3", r"3\pi"),
    ("3", r"3 + \foo"),
    ("1", r"\frac{1}{2"),
    ("(1,000)", "(1,0)"),
    ("12", "12,000"),
    ("1,200", "1.2"),
    ("25", r"12\quad 13"),
    ("6", "{4}{2}"),
    ("x^2", "x^2+1"),
    ("5", "5x"),
    ("5m", "5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("B", "C. 12"),
    ("B. 12", "C. 12"),
    ("B. 12", "B. 13"),
    ("12", "B. 13"),
    ("B", "A"),
    ("B", "A. B"),
    ("-1", "1"),
    ("3/2", "11/2"),
    ("1 1/2", "1/2"),
    ("50%", "5%"),
    ("50", "0.5%"),
    ("30°", r"\pi/3"),
    ("No", "on"),
    ("3.14", r"\pi"),
    ("0.33", "1/3"),
    (r"\infty", r"-\infty"),
    ("3", r"\pm 3"),
    ("x=5", "y=5"),
    ("x", r"\sqrt{x^2}"),
    (r"\sin x", r"\cos x"),
    ("5", "5 or 6"),
    ("5", "five hundred"),
    ("2", "2!!3"),
    ("4", "2+3"),
    ("100,200", "100"),
    ("(100,200)", "100200"),
    ("7", r"7 \text{ or } 8"),
    ("3:45", "3:54"),
    ("2:3", "3:2"),
    ("12 cm", "B: 13 cm"),
    (r"8\pi", "8"),
    (r"\frac{10}{3} cm", r"\frac{10}{3} m"),
    ("5 kg", "5 lb"),
    ("1e400", "1e401"),
    ("2500", r"2.5 \times 10^4"),
    ("5", r"5 \times"),
    ("5", "5^{"),
    ("7", "7)("),
    ("3", "3, 4"),
    ("0.1", "0.01"),
    ("10 m", "10 m^2"),
    ("5 million", "5"),
    ("5", "5 hundred"),
    ("5 million", "5 billion"),
    ("10", "10⁻¹"),
]


@pytest.mark.parametrize(("truth", "given"), RIGHT)
def test_right_answers(truth, given):
    assert load_reward("math")(rf"\boxed{{{given}}}", truth).parts["accuracy"] == 1.0


@pytest.mark.parametrize(("truth", "given"), WRONG)
def test_wrong_answers(truth, given):
    assert load_reward("math")(f"<answer>{given}</answer>", truth).parts["accuracy"] == 0.0


ENDLESS = [
    "9^{9^{9}}",
    "9^{9^{9^{9^9}}}",
    "100000!",
    "((10^6)!)!",
    r"\binom{1000000}{500000}",
    "99999999999^{99999999999}",
    r"\sum_{i=1}^{10^9} i^i",
    r"\sin(10^{10^{10}})",
    "(x+y+z)^{1000000}",
    "x^{x^{x^{x}}}",
    "(" * 60 + "1" + ")" * 60,
    r"\frac{1}{" * 40 + "x" + "}" * 40,
    "x^7-3x^5+2x^2-x+1=0",
]


@pytest.mark.parametrize("given", ENDLESS)
@pytest.mark.parametrize("truth", ["2", "x^2-1=0", "(3,4)"])
def test_no_comparison_takes_long(given, truth):
    begin = time.process_time()
    assert not equal(given, truth)
    assert time.process_time() - begin < 5  # without a limit it never ends


def test_the_limit_of_time_holds_on_every_thread():
    begin = time.process_time()
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(equal, [r"\binom{1000000}{500000}"] * 2, ["2", "3"])) == [False, False]
    assert time.process_time() - begin < 10


def test_braces_that_are_text_close_no_box():
    assert last_boxed(r"so \boxed{\left\{ x : x > 2 \right.} it is") == r"\left\{ x : x > 2 \right."
    assert last_boxed(r"\boxed{[0,1\}}") == r"[0,1\}"
    assert last_boxed(r"\boxed{1\\{2}}") == r"1\\{2}", "two backslashes are a line break"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_limit_holds_though_python_drops_an_exception_in_a_destructor():
    class SlowToEnd:
        def __del__(self):
            while time.thread_time() < begin + 30:
                pass

    def compare() -> bool:
        made = SlowToEnd()
        del made
        while time.thread_time() < begin + 60:
            pass
        return True

    begin = time.thread_time()
    assert within_limit(compare, False) is False
    assert time.thread_time() - begin < 10
