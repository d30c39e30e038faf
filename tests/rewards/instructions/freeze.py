"""Write the verdicts of the published checks of instructions on texts that follow them and texts that do not.

    python tests/rewards/instructions/freeze.py OPEN_INSTRUCT      # tests/rewards/instructions/verdicts.json

It runs the code of the papers: IFEval's in the package if-verifiable, IFTrain's and Tulu 3's in a checkout of
open-instruct, with langdetect (its seed is 0) and nltk's punkt_tab. The tests need none of these.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("verdicts.json")
KEPT = 5  # most cases of an instruction with the same verdict

PROSE = (
    "The river rises in the hills. It flows past Mr. Smith's mill, e.g. the old one, and on to the sea! "
    "Who would not follow it? I paid 3.50 dollars for the map."
)
BASE = (
    PROSE,
    f"{PROSE}\n\nThe sea is cold. The sea is wide.\n\nPeople swim there in June, July and August.",
    "Potato soup is good. Potato salad is better. A potato is best!",
    "Le fleuve descend de la montagne et traverse la ville avant de rejoindre la mer du Nord.",
    "Der Fluss entspringt in den Bergen und mündet nach vielen Kilometern in die Nordsee.",
    "THE RIVER RISES IN THE HILLS AND FLOWS PAST THE OLD MILL TO THE SEA.",
    "the river rises in the hills and flows past the old mill to the sea",
    '"The river rises in the hills."',
    "* one point\n* another point\n- a third point",
    "Sure, here is my answer:\n* one point\n* another point\nI hope this helps, dear reader.",
    "*bold* words and **strong** words and *more* of them",
    "**Sure:**\nMy answer is yes.",
    "My answer is maybe.",
    '{"river": "long", "sea": ["cold", "wide"]}',
    '```json\n{"river": 1}\n```',
    "<<A title>>\nThe river rises [name] in the [place] at [time].",
    "Section 1\nThe river.\nSection 2\nThe sea.\nSection 3\nThe hills.",
    "SECTION 1 The river. SECTION 2 The sea.",
    "One answer.******Another answer.",
    "Same.******Same.",
    "First part. It is short.\n***\nSecond part. It is short.\n***\nThird part. It is short.",
    "First part.\n* * *\nSecond part.",
    "First part.\n***\nSecond part.",
    "A sea. A mill.\n***\nA hill. A map.\n***\nA coat. A hat.",
    "First part.\n\nSecond part.",
    "Dear reader.\nP.S. Bring a coat.",
    "Dear reader.\nP.P.S Bring a coat and a hat.",
    "Tell me about rivers. They are long and wide, and they end in the sea.",
    "Tell me about rivers.",
    "Tell me about rivers.******Tell me about rivers.",
    "about rivers",
    "Is there anything else I can help with?",
    "And that is all. Is there anything else I can help with?",
    "[The] [river] [is] [long.]",
    "<<The river>> <<is long>> <<and wide>>",
    "The river is long.-It is wide.-It ends.",
    "river runs. river rests. river rises.",
    "Under the hill lies a river. Behind the mill lies a river.",
    "Level cats see a noon kayak.",
    "Zebras can swim. Ask Mona.",
    "sea by the sea",
    "I saw the long river there. I saw the deep river there.",
    "I saw the long river there. I saw the long river there.",
    "NASA and ESA saw the USA from orbit",
    "It was Dr. Jones, Ph.D., of Acme Inc. She went... home! \"Really?\" he said at www.example.com.",
    "",
    "12345",
)  # fmt: skip
TEXTS = [*BASE, *(f"Sure! Here it is:\n\n{text}\n\nI hope this helps, e.g. by email." for text in BASE[:44])]
AROUND = ("at least", "at most", "around")
RELATIONS = ("at least", "less than")
ASK = "Tell me about rivers."
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["river", "sea"]}, {"keywords": ["potato"]}],
    "keywords:frequency": [{"keyword": " sea", "frequency": 2, "relation": how} for how in RELATIONS],
    "keywords:forbidden_words": [{"forbidden_words": ["the", "potato"]}, {"forbidden_words": ["riv", "coat"]}],
    "keywords:letter_frequency": [{"letter": "E", "let_frequency": 9, "let_relation": how} for how in RELATIONS],
    "language:response_language": [{"language": code} for code in ("en", "fr", "de")],
    "length_constraints:number_sentences": [{"num_sentences": n, "relation": how} for how in RELATIONS for n in (3, 4)],
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (2, 3)],
    "length_constraints:number_words": [{"num_words": 12, "relation": how} for how in RELATIONS],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "People"},
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "second"},
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "the"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": 3}, {"num_placeholders": 1}],
    "detectable_content:postscript": [{"postscript_marker": "P.S."}, {"postscript_marker": "P.P.S"}],
    "detectable_format:number_bullet_lists": [{"num_bullets": 3}, {"num_bullets": 2}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": 4}, {"num_highlights": 1}],
    "detectable_format:multiple_sections": [
        {"section_spliter": "Section", "num_sections": 3}, {"section_spliter": "SECTION ", "num_sections": 2}
    ],
    "combination:repeat_prompt": [{"prompt_to_repeat": ASK}],
    "startend:end_checker": [{"end_phrase": "Is there anything else I can help with?"}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 3, "capital_relation": how} for how in RELATIONS
    ],
    "copy:repeat_phrase": [{"phrase": "saw the wide river", "small_n": 2}],
    "copy:copy": [{"prompt_to_repeat": ASK}],
    "new:copy_span_idx": [{"prompt_to_repeat": ASK, "n_start": 8, "n_end": 20}],
    "keywords:word_once": [{"keyword": "sea"}, {"keyword": "potato"}],
    "keywords:word_count_different_numbers": [{"keyword": "sea", "frequency": 2, "relation": how} for how in RELATIONS],
    "keywords:exclude_word_harder": [{"keyword": "river"}],
    "first_word:first_word_sent": [{"first_word": ["river"]}, {"first_word": "Tell"}],
    "first_word:first_word_answer": [{"first_word": "The"}],
    "last_word:last_word_sent": [{"last_word": "river"}, {"last_word": ["rivers"]}],
    "last_word:last_word_answer": [{"last_word": "Sea"}, {"last_word": "rivers"}],
    "copy:copying_simple": [{"prompt_to_repeat": ASK}],
    "copy:copying_multiple": [{"prompt_to_repeat": ASK, "N": 2}],
    "count:lowercase_counting": [{"N": 5}],
    "letters:letter_counting": [{"N": 30, "relation": how} for how in RELATIONS],
    "letters:letter_counting2": [{"letter": "e", "let_frequency": 3, "let_relation": how} for how in RELATIONS],
    "count:counting_composition": [{"n_sent": 2, "n_words": 3}, {"n_sent": 2, "n_words": 2}],
    "count:count_increment_word": [
        {"keyword1": "hills", "keyword2": "potato"}, {"keyword1": "cold", "keyword2": "wide"},
        {"keyword1": "long", "keyword2": "saw"}
    ],
    "keywords:keyword_specific_position": [
        {"keyword": "flows", "n": 2, "m": 2}, {"keyword": ["river"], "n": 1, "m": 2}
    ],
    "verify_keywords": [{"keyword_list": ["River", "sea"]}],
    "verify_keyword_frequency": [{"word": "Sea", "N": 2}, {"word": "river", "N": 1}],
    "validate_forbidden_words": [{"forbidden_words": ["RIV"]}],
    "verify_letter_frequency": [{"letter": "w", "N": 1}, {"letter": "T", "N": 2}],
    "validate_response_language": [{"language": code} for code in ("en", "fr")],
    "verify_paragraph_count": [{"N": 2}, {"N": 1}],
    "validate_word_constraint": [{"N": 13, "quantifier": how} for how in AROUND],
    "verify_sentence_constraint": [{"N": 3, "quantifier": how} for how in AROUND],
    "validate_paragraphs": [{"N": 3, "first_word": "The sea", "i": 2}, {"N": 2, "first_word": "Second", "i": 2}],
    "verify_postscript": [{"postscript_marker": "P.S."}, {"postscript_marker": "sea."}],
    "validate_placeholders": [{"N": 3}, {"N": 1}],
    "verify_bullet_points": [{"N": 2}, {"N": 3}],
    "validate_choice": [{"options": ["yes", "maybe"]}],
    "validate_highlighted_sections": [{"N": 3}],
    "validate_sections": [{"N": 3, "section_splitter": "Section"}, {"N": 2, "section_splitter": "SECTION"}],
    "validate_repeat_prompt": [{"original_prompt": ASK}],
    "validate_frequency_capital_words": [{"N": 3, "quantifier": how} for how in AROUND],
    "validate_end": [{"end_phrase": "help with?"}],
}  # fmt: skip
"""Instruction -> arguments to try; all others take none."""


def main() -> None:
    """Run the published checks, and keep some cases of each verdict."""
    sys.path.insert(0, sys.argv[1])
    import langdetect
    from if_verifiable.common import get_loose_transformations
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT as IFEVAL
    from open_instruct.if_functions import IF_FUNCTIONS_MAP
    from open_instruct.IFEvalG.instructions_registry import INSTRUCTION_DICT

    langdetect.DetectorFactory.seed = 0

    def follows(name: str, arguments: dict[str, Any], text: str) -> bool:
        if not text.strip():
            return False
        if name in IF_FUNCTIONS_MAP:
            return bool(IF_FUNCTIONS_MAP[name](text, **arguments))
        instruction = {**INSTRUCTION_DICT, **IFEVAL}[name](name)
        instruction.build_description(**arguments)
        return bool(instruction.check_following(text))

    cases = []
    for name in [*IFEVAL, *sorted(INSTRUCTION_DICT.keys() - IFEVAL.keys()), *IF_FUNCTIONS_MAP]:
        for arguments in ARGUMENTS.get(name, [{}]):
            seen = {verdict: 0 for verdict in ((True, True), (False, True), (False, False))}
            for number, text in enumerate(TEXTS):
                try:
                    strict = follows(name, arguments, text)
                    loose = any(follows(name, arguments, variant) for variant in get_loose_transformations(text))
                except Exception as error:  # the published code fails on a few texts
                    print(f"{name} {arguments} {text[:30]!r}: {type(error).__name__}")
                    continue
                seen[strict, loose] += 1
                if seen[strict, loose] <= KEPT:
                    cases.append([name, arguments, number, strict, loose])
    lines = ",\n".join(json.dumps(case) for case in cases)
    texts = ",\n".join(json.dumps(text, ensure_ascii=False) for text in TEXTS)
    FILE.write_text(f'{{"texts": [\n{texts}\n], "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
