"""Tool calls as models write them, and the tools that they call."""

import asyncio
import sqlite3
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from hostile_answers import assert_linear
from PIL import Image
from tiny_environments import Increment

from lit_rlvr.environments import Calculator, Python, SQLShell, Tools, as_environment
from lit_rlvr.environments.tools import WrappedTools, as_tool_result
from lit_rlvr.errors import UserError
from lit_rlvr.speech.calls import Call, find_calls, typed_value
from lit_rlvr.types import Sample, Turn


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("The answer is 4.", []),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [Call("f", named={"x": 1})]),
        (
            'Both:<tool_call>{"name": "f", "arguments": {}}</tool_call> <tool_call>{"name": "g"}</tool_call>',
            [Call("f"), Call("g")],
        ),
        (
            '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]abc123[ARGS]{"y": "a"}</s>',
            [Call("f", named={"x": 1}), Call("g", named={"y": "a"})],
        ),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]</s>', [Call("f", named={"x": 1})]),
        *(
            (f"I look.<\uff5ctool▁call▁begin\uff5c>{head}<\uff5ctool▁call▁end\uff5c>", [Call("f", named={"x": 1})])
            for head in ('function<\uff5ctool▁sep\uff5c>f\n```json\n{"x": 1}\n```', 'f<\uff5ctool▁sep\uff5c>{"x": 1}')
        ),
        (
            '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>'
            "<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
            [Call("f", named={"x": 1}), Call("g")],
        ),
        (
            "<|START_THINKING|><call>g()</call><|END_THINKING|>"
            '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"x": 1}}]<|END_ACTION|>',
            [Call("f", named={"x": 1})],
        ),
        ('Action: ```json\n[{"tool_name": "f", "parameters": {"x": 1}}]\n```', [Call("f", named={"x": 1})]),
        *(
            (
                f'<{d}invoke name="f"><{d}parameter name="x"{more}>1</{d}parameter></{d}invoke>',
                [Call("f", named={"x": "1"}, is_typed=False)],
            )
            for d, more in (("", ""), ("\uff5cDSML\uff5c", ' string="false"'))
        ),
        (
            '<|tool_call_start|>[f(x=true, y=[null, "a"])]<|tool_call_end|>',
            [Call("f", named={"x": True, "y": [None, "a"]})],
        ),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 2}"}</tool_call>', [Call("f", named={"x": 2})]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}', [Call("f", named={"x": 1})]),
        ('{"name": "f", "parameters": {"q": "a; b"}}', [Call("f", named={"q": "a; b"})]),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [Call("f"), Call("g")]),
        ('{"answer": 4}', []),
        ('{"name": "Ada", "age": 7}', []),
        ("<call>f(1, 'a', x=[2, 3])</call>", [Call("f", (1, "a"), {"x": [2, 3]})]),
        ("<think><call>f(1)</call></think>4", []),
        ("<think>Let me see. <call>f(1)</call>", [Call("f", (1,))]),
        ('<think>plan\n{"name": "f", "parameters": {}}', [Call("f")]),
        ('<think>plan\n{"name": "f", "parameters": {}}\n</think>4', []),
        ('plan\n{"name": "f", "parameters": {}}\n</think>4', []),
        (
            '<think>a</think>I look.\n{"name": "f", "parameters": {"x": "</think>"}}',
            [Call("f", named={"x": "</think>"})],
        ),
        ('I look:\n```json\n{"name": "f", "arguments": {}}\n```\nThen I go on.', [Call("f")]),
        ('It has {"name": "f", "arguments": {}} in its log.', []),
        ('Ada is\n{"name": "Ada", "age": 7}', []),
        ('{"type": "function", "function": {"name": "f"}}', [Call("f")]),
        ('<think>\n{"name": "f", "parameters": {}}', [Call("f")]),
        ("<think>I may write <tool_call> here</think><call>f(1)</call>", [Call("f", (1,))]),
        ("I may write <tool_call> here</think><call>f(1)</call>", [Call("f", (1,))]),
        ("<call>f(1)</call></think><call>g()</call>", [Call("g")]),
        ("<call>f(1)</call><think>and <call>h()</call></think><call>g()</call>", [Call("f", (1,)), Call("g")]),
        (
            '<think>a</think><tool_call>{"name": "run", "arguments": {"code": "s = \\"</think>\\""}}</tool_call>',
            [Call("run", named={"code": 's = "</think>"'})],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "<think>"}}</tool_call>',
            [Call("f", named={"x": "<think>"})],
        ),
        (
            '<think>plan <tool_call>{"name": "f", "arguments": {"x": "</think> </tool_call> <tool_call>"}}',
            [Call("f", named={"x": "</think> </tool_call> <tool_call>"})],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "a</tool_call>b"}}</tool_call>'
            '<tool_call>{"name": "g"}</tool_call>',
            [Call("f", named={"x": "a</tool_call>b"}), Call("g")],
        ),
        ('<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}</tool_call>', [Call("f"), Call("g")]),
        ("<call>f('</call>')</call><call>g('</think>')</call>", [Call("f", ("</call>",)), Call("g", ("</think>",))]),
        (
            "<tool_call>\n<function=f>\n<parameter=x>\na</tool_call>\n</think>\n</parameter>b\n</parameter>\n"
            "<parameter=y>\n2\n</parameter>\n</function>\n</tool_call>",
            [Call("f", named={"x": "a</tool_call>\n</think>\n</parameter>b", "y": "2"}, is_typed=False)],
        ),
        (
            "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value></tool_call></arg_value>\n</tool_call>",
            [Call("f", named={"x": "</tool_call>"}, is_typed=False)],
        ),
        (
            "<|tool_call_start|>[f(x='<|tool_call_end|>')]<|tool_call_end|>",
            [Call("f", named={"x": "<|tool_call_end|>"})],
        ),
        ('{"name": "f", "parameters": {"x": "</think>"}}<|eot_id|>', [Call("f", named={"x": "</think>"})]),
        ('<think>a</think>{"name": "f", "parameters": {"x": "</think>"}}', [Call("f", named={"x": "</think>"})]),
        ('{"name": "f", "parameters": {"x": "<|im_end|>"}}<|im_end|>', [Call("f", named={"x": "<|im_end|>"})]),
        (
            '<tool_call>{"type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 2}"}}</tool_call>',
            [Call("f", named={"x": 2})],
        ),
        (
            '{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 2}"}}',
            [Call("f", named={"x": 2})],
        ),
        ('{"type": "function", "name": "f", "arguments": {"x": 2}}', [Call("f", named={"x": 2})]),
        (
            '{"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}, '
            '{"function": {"name": "g", "arguments": ""}}]}',
            [Call("f"), Call("g")],
        ),
        ('<tool_call>[{"name": "f", "arguments": {}}, {"name": "g"}]</tool_call>', [Call("f"), Call("g")]),
        ('[{"name": "f", "arguments": {}}]', [Call("f")]),
        ('```json\n{"name": "f", "arguments": {}}\n```', [Call("f")]),
        ('{"name": "f", "arguments": {}}\n</tool_call>', [Call("f")]),
        ('{"name": "f", "arguments": {}}\nI wait for the result.', [Call("f")]),
        ('<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>', [Call("f", named={"x": "a\nb"})]),
        (
            "I look.\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
            [Call("f", named={"x": "1"}, is_typed=False)],
        ),
        ('<function=f>{"x": 1}</function>', [Call("f", named={"x": 1})]),
        ('<call>f()</call><tool_call>{"name": "g"}</tool_call><call>h()</call>', [Call("f"), Call("g"), Call("h")]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "<call>g()</call>"}}</tool_call>',
            [Call("f", named={"x": "<call>g()</call>"})],
        ),
        (
            "<tool_call>\n<function=f>\n<parameter=x>\n1\n2\n</parameter>\n</function>\n</tool_call>",
            [Call("f", named={"x": "1\n2"}, is_typed=False)],
        ),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>", [Call("f", is_typed=False)]),
        (
            "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>a b</arg_value>\n</tool_call>",
            [Call("f", named={"x": "a b"}, is_typed=False)],
        ),
        (
            "Now.<|tool_call_start|>[f(x='a', y=2), g()]<|tool_call_end|>",
            [Call("f", named={"x": "a", "y": 2}), Call("g")],
        ),
        (
            '<|tool_call>call:f{x:<|"|>a: "b"<|"|>,y:[1,true]}<tool_call|>',
            [Call("f", named={"x": 'a: "b"', "y": [1, True]})],
        ),
        (
            "<|channel|>analysis<|message|>f?<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
            '<|message|>{"x": 1}',
            [Call("f", named={"x": 1})],
        ),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [Call("f", named={"x": 1})]),
        *(
            (text, [Call("f", named={"x": 1})])
            for text in (
                '<longcat_tool_call>{"name": "f", "arguments": {"x": 1}}</longcat_tool_call>',
                '<function_call> {"name": "f", "arguments": {"x": 1}}',
                'I look.<tool_calls>[{"name": "f", "arguments": {"x": 1}}]</tool_calls>',
                'functools[{"name": "f", "arguments": {"x": 1}}]<|end|>',
                '<|content_invoke_tool_json|>{"name": "f", "args": {"x": 1}}<|end_message|>',
                '<|tools_prefix|>[{"f": {"x": 1}}]<|tools_suffix|>',
                "<|python_start|>[f(x=1)]<|python_end|>",
                "[f(x=1)]<|eot_id|>",
                "<function_calls>f(x=1)</function_calls>",
            )
        ),
        ("<function_calls>f(x=1)\ng()</function_calls>", [Call("f", named={"x": 1}), Call("g")]),
        ("The roots are [f(1), f(2)].", []),
        ("[sqrt(2)]", []),
        (
            "<start_function_call>call:f{x:<escape>a: b<escape>,y:2}<end_function_call>",
            [Call("f", named={"x": "a: b", "y": 2})],
        ),
        *(
            (text, [Call("f", named={"x": "1"}, is_typed=False)])
            for text in (
                '<\uff5cDSML\uff5c invoke name="f"><\uff5cDSML\uff5c parameter name="x">1</\uff5cDSML\uff5c parameter>',
                '<function name="f"><param name="x">1</param></function>',
                "<tool_calls>\n<tool_call>f<tool_sep>\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
                '<tool_call_begin>function<tool_sep><steptml:invoke name="f"><steptml:parameter name="x">1'
                "</steptml:parameter></steptml:invoke>",
            )
        ),
    ],
)
def test_calls_are_found_in_every_form(text: str, calls: list[Call]) -> None:
    assert find_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{name: f}</tool_call>", "not valid JSON"),
        ("<tool_call>[1]</tool_call>", "must be a JSON object"),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "arguments must be a JSON object"),
        ("<call>f(</call>", "cannot be read"),
        ("<call>f(open('x'))</call>", "cannot be read"),
        ("<call>3 + 4</call>", "written as name"),
        ("<call>[]</call>", "written as name"),
        ("<call>x = f(1)</call>", "written as name"),
        ("<|tools_prefix|>[]<|tools_suffix|>", "must be a JSON object"),
        ("[f(x=y)]", "cannot be read"),
        ("<call>f(**{'x': 1})</call>", "names each of its arguments"),
        ("<call>" + "(" * 5000 + "</call>", "cannot be read"),
        ("<tool_call>" + "[" * 100_000, "not valid JSON"),
        ("<|tool_call>f(1)<tool_call|>", "written as call:name"),
        ("to=functions.f json<|message|>{", "arguments must be a JSON object"),
        ('{"name": "f", "parameters": {"x": }}', "not valid JSON"),
        ('I look.\n{"name": "f", "parameters": {"x": }}', "not valid JSON"),
        ('<think>a</think>{"name": "f", "parameters": {"x": 1}', "not valid JSON"),
        ('{"type": "function", "function": {"name": "f", "arguments": "{x: 2}"}}', "arguments must be a JSON object"),
        ('<think>a <tool_call>{"name": "f"', "not valid JSON"),
        ("<tool_call></tool_call>", "not valid JSON"),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1", "'<parameter=x>\\n1' is in no argument"),
        ("<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1", "is in no argument"),
    ],
)
def test_a_malformed_call_says_what_is_wrong_with_it(text: str, problem: str) -> None:
    (call,) = find_calls(text)
    assert problem in call.problem


def test_a_call_that_cannot_be_read_is_an_error_that_the_model_sees() -> None:
    seen = Calculator().step(
        Turn('<think>Let me see. <tool_call>{"name": "calculate", "arguments": {"expression": 1 +')
    )
    assert (seen.calls, seen.errors, seen.done) == (1, 1, False) and "not valid JSON" in seen.text
    asked = '<tool_call>{"function": {"name": "calculate", "arguments": "{\\"expression\\": \\"1 + 1\\"}"}}</tool_call>'
    assert Calculator().step(Turn(f"<think>Let me see. {asked}")).text == "2"


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "string"}, "3"),
        ("3", {"type": ["string", "null"]}, "3"),
        ("3", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "3"),
        ("3", {"oneOf": [{"type": "null"}, {"type": "string"}]}, "3"),
        ("3", {"type": "string", "nullable": True}, "3"),
        ("null", {"type": "string", "nullable": True}, None),
        ("None", {"type": ["string", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("true", {"type": ["string", "null"]}, "true"),
        ("3", {"type": ["integer", "null"]}, 3),
        ("null", {"type": ["integer", "null"]}, None),
        ("3", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, 3),
        ("3.5", {"type": ["integer", "string"]}, "3.5"),
        ("[1]", {"anyOf": [{"type": "array"}, {"type": ["string", "null"]}]}, [1]),
        ("[1]", {"type": ["string", "object"]}, "[1]"),
        ("True", {"type": ["boolean", "string"]}, True),
        ('"3"', {"type": ["string", "integer"]}, '"3"'),
        ("3", {"enum": ["3", "4"]}, "3"),
        ("3", {}, 3),
        ("a", {"type": "integer"}, "a"),
    ],
)
def test_bare_values_get_a_type_that_their_schema_allows(text: str, schema: dict[str, object], value: object) -> None:
    typed = typed_value(text, schema)
    assert typed == value and type(typed) is type(value)


@pytest.mark.parametrize(
    "piece",
    [
        "<tool_call>",
        "<think></think>",
        "{",
        '{"name": "f", ',
        "x <call>f(",
        "<function=f>",
        '<invoke name="a">',
        "`<call>",
    ],
)
def test_hostile_turns_are_quick(piece: str) -> None:
    assert_linear(lambda size: find_calls(piece * size), 3000)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("17 * 23", "391"), ("-(2 + 3) * 4", "-20"), ("7 // 2 + 7 % 4", "6"), ("2 ** 10", "1024"), ("1 / 4", "0.25")],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert Calculator().calculate(expression) == value


@pytest.mark.parametrize(
    "expression", ["9 ** 9 ** 9", "(-8) ** 0.5", "abs(3)", "x", "'a' * 10 ** 9", "1" * 2000, "True"]
)
def test_the_calculator_computes_nothing_else(expression: str) -> None:
    answer = Calculator().step(Turn(f"<call>calculate({expression!r})</call>"))
    assert answer.text.startswith("{'error': ") and (answer.calls, answer.errors, answer.done) == (1, 1, False)


def test_a_turn_without_a_call_ends_the_episode() -> None:
    assert Calculator().step(Turn("4")).done


def test_each_call_of_a_turn_gets_a_message() -> None:
    seen = Calculator().step(Turn("<call>calculate('1 + 1')</call><call>no(1)</call><call>calculate(a=2)</call>"))
    assert [result.name for result in seen.results] == ["calculate", "no", "calculate"]
    first, second, third = (result.text for result in seen.results)
    assert (first, second) == ("2", "{'error': 'Tool no not found.'}")
    assert "unexpected keyword argument 'a'" in third and (seen.calls, seen.errors) == (3, 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": None, "b": True}, "{'a': None, 'b': True}"),
        (None, "None"),
        ([{"row": 0}], "[{'row': 0}]"),
        (0.5, "0.5"),
        ([{"type": "text", "text": "Here "}, {"type": "text", "text": "it is."}], "Here it is."),
    ],
)
def test_results_become_text_as_python_writes_them(value: object, text: str) -> None:
    assert as_tool_result("look", value).text == text


def test_content_blocks_may_hold_images() -> None:
    picture = Image.new("L", (2, 3))
    seen = as_tool_result("look", [{"type": "image", "image": picture}, {"type": "text", "text": "Here."}])
    assert (seen.text, seen.images) == ("Here.", (picture,)) and as_tool_result("look", picture).images == (picture,)
    with pytest.raises(ValueError, match="must hold a PIL image"):
        as_tool_result("look", [{"type": "image", "image": "a.png"}])


class Mailbox:
    """Its state belongs to one event loop."""

    async def put(self, letter: str) -> int:
        """Put a letter in.

        Args:
            letter: The letter.
        """
        if not hasattr(self, "_letters"):
            self._letters: asyncio.Queue[str] = asyncio.Queue()
            self._sorting = asyncio.create_task(self._letters.get())
        await self._letters.put(letter)
        return self._letters.qsize()

    async def take(self) -> str:
        """Take the letter that was sorted first."""
        return await self._sorting


def test_one_event_loop_lives_on_between_calls() -> None:
    tools = WrappedTools(Mailbox)
    assert tools.step(Turn("<call>put('a')</call>")).text == "1"
    assert tools.step(Turn("<call>take()</call>")).text == "a"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Painter:
    def paint(self, colour: Colour, shade: Literal["dark", "light"] = "dark") -> str:
        """Paint.

        Args:
            colour: The colour.
            shade: Its shade.
        """
        return f"{shade} {colour}"


class Adder:
    def add(self, number: int, more: list[int], label: str) -> str:
        """Add.

        Args:
            number: A number.
            more: Further numbers.
            label: A text.
        """
        return f"{label!r} {number + sum(more)}"


def test_bare_texts_get_the_types_of_the_arguments() -> None:
    parts = {"number": "7", "more": "[1, 2]", "label": "7"}
    call = "".join(f"<parameter={name}>\n{text}\n</parameter>\n" for name, text in parts.items())
    seen = WrappedTools(Adder).step(Turn(f"<tool_call>\n<function=add>\n{call}</function>\n</tool_call>"))
    assert seen.text == "'7' 10"


def test_an_argument_may_be_an_enum() -> None:
    tools = WrappedTools(Painter)
    assert tools.tools[0]["function"]["parameters"]["properties"]["shade"]["enum"] == ["dark", "light"]
    assert tools.step(Turn("<call>paint('red', shade='light')</call>")).text == "light red"


def test_schemas_come_from_types_and_docstrings() -> None:
    (tool,) = Calculator().tools
    assert tool["function"]["name"] == "calculate"
    assert tool["function"]["parameters"]["properties"]["expression"]["type"] == "string"
    assert Calculator(offer=False).tools == ()


class Stepping:
    """Its tools have names that environments use themselves."""

    def step(self) -> str:
        """Go on."""
        return "on"

    def reward(self) -> str:
        """Take the treasure."""
        return "gold"


class Open:
    def look(self, *args: int) -> str:
        """Look.

        Args:
            args: Where.
        """
        return ""


def test_a_tool_may_have_any_name() -> None:
    tools = WrappedTools(Stepping)
    assert [tool["function"]["name"] for tool in tools.tools] == ["reward", "step"] and not tools.has_reward
    seen = tools.step(Turn("<call>step()</call><call>reward()</call>"))
    assert [result.text for result in seen.results] == ["on", "gold"]
    with pytest.raises(UserError, match=r"Open\.look takes \*args or \*\*kwargs"):
        WrappedTools(Open)


class Undocumented:
    def look(self, where):  # type: ignore[no-untyped-def]
        return where


class NoTools(Tools):
    pass


def test_methods_that_cannot_be_offered_are_named() -> None:
    with pytest.raises(UserError, match="NoTools has no public method"):
        NoTools()
    with pytest.raises(UserError, match=r"Undocumented\.look cannot be offered as a tool.*docstring"):
        WrappedTools(Undocumented)


def test_a_class_written_for_trl_works_by_its_path() -> None:
    tools = as_environment("tiny_environments.Increment")
    assert isinstance(tools, WrappedTools) and tools.has_reward
    assert tools.reset(Sample("a", "Go.", "", row={"start": 2})) == " The counter is 2."
    assert [tool["function"]["name"] for tool in tools.tools] == ["increment"]
    assert tools.step(Turn('<tool_call>{"name": "increment", "arguments": {"step": 4}}</tool_call>')).text == "6"
    assert tools.reward() == 1.0
    assert isinstance(tools.holder, Increment)
    assert isinstance(WrappedTools("tiny_environments.Increment").holder, Increment)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.Here", "No module named 'nothing'"),
        ("lit_rlvr.environments.None_", "cannot be imported"),
        ("os.path.sep", "is neither a class nor a function"),
        ("Calculater", "did you mean 'Calculator'"),
        ("{class_path: my.Thing}", "by its dotted path alone"),
    ],
)
def test_a_wrong_path_is_one_line(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_environment(path)


def test_the_sql_shell_shows_rows_or_the_error_and_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "cats.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cats (name TEXT, age INTEGER)")
        database.executemany("INSERT INTO cats VALUES (?, ?)", [("Ada", 3), ("Ben", None), ("Cleo", 5)])
    shell = SQLShell(shown_rows=2)
    shell.reset(Sample("a", "?", "", row={"databases": [str(path)]}))

    def query(sql: str) -> str:
        return shell.step(Turn(f"<call>query({sql!r})</call>")).text

    assert query("SELECT * FROM cats") == "Ada | 3\nBen | NULL\n... and 1 more rows"
    assert query("SELECT name FROM cats WHERE age > 9") == "no rows"
    assert query("SELECT nam FROM cats") == "{'error': 'no such column: nam'}"
    assert "not authorized" in query("DELETE FROM cats")
    assert "too many instructions" in query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n"
    )
    assert query("SELECT COUNT(*) FROM cats") == "3"
    with pytest.raises(UserError, match="a: no `databases` in its row"):
        shell.reset(Sample("a", "?", ""))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print(6 * 7)", "42\n"),
        ("x = 1", "the program printed nothing"),
        ("1 / 0", "{'error': 'ZeroDivisionError: division by zero'}"),
        ("open('/tmp/x', 'w')", "{'error': "),
        ("while True: pass", "{'error': "),
    ],
)
def test_python_runs_in_the_sandbox(program: str, text: str) -> None:
    assert Python().step(Turn(f"<call>python({program!r})</call>")).text.startswith(text)
