"""Rewrites of SQL and programs."""

from __future__ import annotations

import re

from lit_rlvr.commands.check.gold import Gold
from lit_rlvr.commands.check.rewrites.registry import breaks, keeps

_KEYWORDS = re.compile(r"\b(select|from|where|group by|order by|having|limit|join|on|and|or|as)\b", re.IGNORECASE)


@keeps("sql")
def semicolon(gold: Gold) -> str:
    """End the query with a semicolon."""
    return f"{gold.answer};"


@keeps("sql")
def comment_before_the_query(gold: Gold) -> str:
    """Put a comment before the query."""
    return f"-- the query\n{gold.answer}"


@keeps("sql")
def keywords_in_small_letters(gold: Gold) -> str | None:
    """Write keywords in small letters, in a query without quotes."""
    return None if _is_quoted(gold) else _KEYWORDS.sub(lambda found: found[0].lower(), gold.answer)


@keeps("sql")
def query_on_several_lines(gold: Gold) -> str | None:
    """Begin a line with each clause, in a query without quotes."""
    clauses = r" +(?=(?:from|where|group by|order by|having|limit)\b)"
    return None if _is_quoted(gold) else re.sub(clauses, "\n", gold.answer, flags=re.IGNORECASE)


@keeps("sql")
def query_in_a_query(gold: Gold) -> str | None:
    """Select everything from the query, unless it is ordered."""
    return None if _is_ordered(gold) else f"SELECT * FROM ({gold.answer})"


@keeps("sql")
def common_table(gold: Gold) -> str | None:
    """Give the query a name with WITH, unless it is ordered."""
    return None if _is_ordered(gold) else f"WITH found AS ({gold.answer}) SELECT * FROM found"


@keeps("sql", whole=True)
def fence_of_sqlite(gold: Gold) -> str:
    """Call the block sqlite."""
    return f"```sqlite\n{gold.answer}\n```"


@keeps("sql", whole=True)
def sql_fence_in_capitals(gold: Gold) -> str:
    """Call the block SQL."""
    return f"```SQL\n{gold.answer}\n```"


@keeps("sql", whole=True)
def sql_fence_without_a_name(gold: Gold) -> str:
    """Leave out the name of the block."""
    return f"```\n{gold.answer}\n```"


@keeps("sql", whole=True)
def result_after_the_query(gold: Gold) -> str:
    """Show a result in a text block after the query."""
    return f"```sql\n{gold.answer}\n```\nResult:\n```text\n1\n```"


@keeps("sql", whole=True)
def earlier_query(gold: Gold) -> str:
    """Try another query in a block before the right one."""
    return f"First the tables:\n```sql\nSELECT name FROM sqlite_master\n```\nThe query:\n```sql\n{gold.answer}\n```"


@breaks("sql")
def syntax_error(gold: Gold) -> str:
    """Leave the query open."""
    return f"{gold.answer} WHERE ("


@breaks("sql")
def text_of_the_query(gold: Gold) -> str:
    """Select the text of the query in place of its result."""
    return "SELECT '" + gold.answer.replace("'", "''") + "'"


@breaks("sql")
def one_column_more(gold: Gold) -> str:
    """Add a column with a value that no data hold."""
    return f"SELECT *, 'a column that nobody asked for' FROM (SELECT 1) LEFT JOIN ({gold.answer})"


@breaks("sql")
def unknown_table(gold: Gold) -> str:
    """Read a table that does not exist."""
    return "SELECT * FROM no_such_table"


@breaks("sql")
def query_in_a_comment(gold: Gold) -> str:
    """Put the query into a comment, and select something else."""
    return f"/* {gold.answer.replace('*/', '')} */ SELECT 'nothing of the kind'"


def _is_quoted(gold: Gold) -> bool:
    return re.search(r"['\"`\[]|--|/\*", gold.answer) is not None


def _is_ordered(gold: Gold) -> bool:
    return re.search(r"\border\s+by\b", gold.answer, re.IGNORECASE) is not None


@keeps("code")
def comments(gold: Gold) -> str:
    """Put a comment before and after the program."""
    return f"# the program\n{gold.answer}\n# end"


@keeps("code")
def future_import(gold: Gold) -> str:
    """Begin the program with a future import."""
    return f"from __future__ import annotations\n\n{gold.answer}"


@keeps("code")
def blank_lines_around(gold: Gold) -> str:
    """Put blank lines around the program."""
    return f"\n\n{gold.answer}\n\n"


@keeps("code", whole=True)
def fence_of_py(gold: Gold) -> str:
    """Call the block py."""
    return f"```py\n{gold.answer}\n```"


@keeps("code", whole=True)
def python_fence_in_capitals(gold: Gold) -> str:
    """Call the block Python."""
    return f"```Python\n{gold.answer}\n```"


@keeps("code", whole=True)
def code_fence_without_a_name(gold: Gold) -> str:
    """Leave out the name of the block."""
    return f"```\n{gold.answer}\n```"


@keeps("code", whole=True)
def fence_with_a_title(gold: Gold) -> str:
    """Give the block a title."""
    return f'```python title="solution.py"\n{gold.answer}\n```'


@keeps("code", whole=True)
def output_after_the_program(gold: Gold) -> str:
    """Show an output in a text block after the program."""
    return f"```python\n{gold.answer}\n```\n\nOutput:\n```text\n3\n```"


@keeps("code", whole=True)
def shell_before_the_program(gold: Gold) -> str:
    """Show a command of the shell in a block before the program."""
    return f"Run it like this:\n```bash\npython solution.py\n```\nThe program:\n```python\n{gold.answer}\n```"


@breaks("code")
def no_program(gold: Gold) -> str:
    """Write a program that does nothing."""
    return "pass"


@breaks("code")
def error_at_the_end(gold: Gold) -> str:
    """Raise an exception after the program."""
    return f"{gold.answer}\nraise ValueError('not finished')"


@breaks("code")
def exit_at_once(gold: Gold) -> str:
    """End with status 0 before anything is computed."""
    return f"import sys\nsys.exit(0)\n{gold.answer}"


@breaks("code")
def hard_exit(gold: Gold) -> str:
    """End the process with status 0 before anything is computed."""
    return f"import os\nos._exit(0)\n{gold.answer}"


@breaks("code")
def equal_to_everything(gold: Gold) -> str | None:
    """Return an object that says it equals everything."""
    name = gold.sample.row.get("function")
    return name and (
        "class Equal(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n\n"
        f"def {name}(*args, **kwargs):\n    return Equal()"
    )


@breaks("code")
def endless_loop(gold: Gold) -> str:
    """Never end."""
    return "while True:\n    pass"


@breaks("code", whole=True)
def program_in_prose(gold: Gold) -> str:
    """Describe the program in a sentence."""
    return "Loop over the input, compute each value, and print it."
