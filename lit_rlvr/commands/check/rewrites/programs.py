"""Rewrites of SQL and programs."""

from __future__ import annotations

import re

from lit_rlvr.commands.check.gold import Gold
from lit_rlvr.commands.check.rewrites.registry import add_forms, breaks, fill, keeps, substitute

add_forms(
    keeps("sql"),
    {
        "semicolon": "{answer};",
        "comment before the query": "-- the query\n{answer}",
    },
)


add_forms(
    keeps("sql"),
    {
        "keywords in small letters": (
            r"(?i)\b(select|from|where|group by|order by|having|limit|join|on|and|or|as)\b",
            lambda found: found[0].lower(),
        ),
        "query on several lines": (r"(?i) +(?=(?:from|where|group by|order by|having|limit)\b)", "\n"),
    },
    lambda gold, change: None if re.search(r"['\"`\[]|--|/\*", gold.answer) else substitute(gold, change),
)

add_forms(
    keeps("sql"),
    {
        "query in a query": "SELECT * FROM ({answer})",
        "common table": "WITH found AS ({answer}) SELECT * FROM found",
    },
    lambda gold, form: None if re.search(r"(?i)\border\s+by\b", gold.answer) else fill(gold, form),
)

add_forms(
    keeps("sql", whole=True),
    {
        "fence of sqlite": "```sqlite\n{answer}\n```",
        "sql fence in capitals": "```SQL\n{answer}\n```",
        "sql fence without a name": "```\n{answer}\n```",
        "result after the query": "```sql\n{answer}\n```\nResult:\n```text\n1\n```",
        "earlier query": "First the tables:\n```sql\nSELECT name FROM sqlite_master\n```\n"
        "The query:\n```sql\n{answer}\n```",
    },
)

add_forms(
    breaks("sql"),
    {
        "syntax error": "{answer} WHERE (",
        "one column more": "SELECT *, 'a column that nobody asked for' FROM (SELECT 1) LEFT JOIN ({answer})",
        "unknown table": "SELECT * FROM no_such_table",
    },
)


add_forms(
    breaks("sql"),
    {
        "text of the query": lambda query: "SELECT '" + query.replace("'", "''") + "'",
        "query in a comment": lambda query: f"/* {query.replace('*/', '')} */ SELECT 'nothing of the kind'",
    },
    lambda gold, change: change(gold.answer),
)


add_forms(
    keeps("code"),
    {
        "comments": "# the program\n{answer}\n# end",
        "future import": "from __future__ import annotations\n\n{answer}",
        "blank lines around": "\n\n{answer}\n\n",
    },
)

add_forms(
    keeps("code", whole=True),
    {
        "fence of py": "```py\n{answer}\n```",
        "python fence in capitals": "```Python\n{answer}\n```",
        "code fence without a name": "```\n{answer}\n```",
        "fence with a title": '```python title="solution.py"\n{answer}\n```',
        "output after the program": "```python\n{answer}\n```\n\nOutput:\n```text\n3\n```",
        "shell before the program": "Run it like this:\n```bash\npython solution.py\n```\n"
        "The program:\n```python\n{answer}\n```",
    },
)

add_forms(
    breaks("code"),
    {
        "no program": "pass",
        "error at the end": "{answer}\nraise ValueError('not finished')",
        "exit at once": "import sys\nsys.exit(0)\n{answer}",
        "hard exit": "import os\nos._exit(0)\n{answer}",
        "endless loop": "while True:\n    pass",
    },
)


@breaks("code")
def equal_to_everything(gold: Gold) -> str | None:
    """Return an object that says it equals everything."""
    name = gold.sample.row.get("function")
    return name and (
        "class Equal(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n\n"
        f"def {name}(*args, **kwargs):\n    return Equal()"
    )


add_forms(breaks("code", whole=True), {"program in prose": "Loop over the input, compute each value, and print it."})
