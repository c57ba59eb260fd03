"""CoNLL files of the field: comments, numbered words, CoNLL-U, separators, line ends."""

from dataclasses import replace

import pytest

from jaxllm.config.fields import DataConfig
from jaxllm.data.conll import sentences
from jaxllm.errors import InputError

CONLLU = """\
# newdoc
# sent_id = 1
# text = They're here
1-2\tThey're\t_\t_\t_\t_\t_\t_\t_\t_
1\tThey\tthey\tPRON\tPRP\t_\t3\tnsubj\t_\t_
2\t're\tbe\tAUX\tVBP\t_\t3\tcop\t_\t_
3\there\there\tADV\tRB\t_\t0\troot\t_\t_
3.1\tnow\tnow\tADV\t_\t_\t_\t_\t_\t_

# sent_id = 2
1\t10 000\t10 000\tNUM\tCD\t_\t0\troot\t_\t_
2\t#\t#\tSYM\t#\t_\t1\tdep\t_\t_
"""


def read(content, **fields):
    """[(words, tags, lines)] of the sentences in a file."""
    rows = sentences(
        "a.conll", content.splitlines(keepends=True), DataConfig(**fields), labelled=True
    )
    return [(row.text, row.label, row.lines) if row.fault is None else row.fault for row in rows]


COMMENTED = {
    "MultiCoNER": "# id 7f domain=x\nanna _ _ B-PER\nflew _ _ O\n\n# id 8 domain=x\nto _ _ O\n",
    "tabs": "# text = anna flew\nanna\t_\tB-PER\nflew\t_\tO\n\n# a = O\nto\t_\tO\n",
    "OntoNotes": "#begin document (a/b); part 000\nanna B-PER\nflew O\n\n#end document\n\nto O\n",
    "two columns": "#\thttp://a.b\nanna\tB-PER\nflew\tO\n\n#\thttp://a.c\nto\tO\n",
}


@pytest.mark.parametrize("name", COMMENTED)
def test_comments_are_no_words(name):
    found = [(words, tags) for words, tags, _ in read(COMMENTED[name])]
    assert found == [(["anna", "flew"], ["B-PER", "O"]), (["to"], ["O"])]


def test_a_hash_with_a_tag_is_a_word():
    text = "# O\n7 O\n\n#rio B-LOC\nis O\n# O\n"
    expected = [
        (["#", "7"], ["O", "O"], [1, 2]),
        (["#rio", "is", "#"], ["B-LOC", "O", "O"], [4, 5, 6]),
    ]
    assert read(text) == expected
    assert read(text.replace(" ", "\t")) == expected
    assert read("#a X\n#b Y\n") == [(["#a", "#b"], ["X", "Y"], [1, 2])]
    # Where tabs separate columns, spaces make none.
    assert read("# x O\na\t_\tO\n") == [(["a"], ["O"], [2])]


def test_a_line_with_a_hash_inside_a_sentence_is_not_passed_over():
    assert read("a O\n# three columns\nb O\n") == ["other than 2 columns"]


def test_conllu_has_names_and_lines_that_are_no_words():
    upos = [
        (["They", "'re", "here"], ["PRON", "AUX", "ADV"], [5, 6, 7]),
        (["10 000", "#"], ["NUM", "SYM"], [11, 12]),
    ]
    assert read(CONLLU, label="upos") == upos
    assert read(CONLLU.replace("\n", "\r\n"), label="upos") == upos
    lemmas = [(["they", "be", "here"], ["PRP", "VBP", "RB"], [5, 6, 7])]
    assert read(CONLLU, text="lemma", label="xpos")[:1] == lemmas
    named = replace(DataConfig(), columns=[*"abcdefghij"], text="b", label="h")
    rows = list(sentences("x", CONLLU.splitlines(keepends=True), named, labelled=True))
    assert [row.label for row in rows] == [["nsubj", "cop", "root"], ["root", "dep"]]
    # _ is what CoNLL-U writes for a tag that is not there.
    assert read(CONLLU.replace("NUM", "_"), label="upos")[1][1] == ["", "SYM"]
    with pytest.raises(InputError, match=r"no column 'label'.*'upos', 'xpos'"):
        read(CONLLU)


def test_numbered_words_are_in_the_second_column():
    germeval = "#\thttp://a [2009-10-17]\n1\tAnna\tB-PER\tO\n2\tflog\tO\tO\n\n#\tb\n1\tEs\tO\tO\n"
    with pytest.raises(InputError) as error:
        read(germeval)
    assert "data.columns: [id, text, label, column4]" in str(error.value)
    expected = [(["Anna", "flog"], ["B-PER", "O"], [2, 3]), (["Es"], ["O"], [6])]
    assert read(germeval, columns=["id", "text", "label", "column4"]) == expected
    three = "".join(
        line.removesuffix("\tO\n") + "\n" if line[0] in "12" else line
        for line in germeval.splitlines(keepends=True)
    )
    assert read(three) == expected
    with pytest.raises(InputError, match="expected also their tags"):
        read("1 Anna\n2 flog\n\n1 Es\n")
    # Numbers that are words count from 1 in few sentences.
    words = "1 x CD\n2 x CD\n\nthe x DT\n\na x DT\n"
    assert [found[0] for found in read(words)] == [["1", "2"], ["the"], ["a"]]


def test_spaces_that_are_not_ascii_belong_to_words():
    assert read("10\u00a0000 CD\n\u3000 O \r\n \r\nx   O") == [
        (["10\u00a0000", "\u3000"], ["CD", "O"], [1, 2]),
        (["x"], ["O"], [4]),
    ]


def test_documents_and_faults_have_their_lines():
    text = "-DOCSTART- -X- O\n\na O\n-DOCSTART-\nb O\nc\n"
    rows = list(sentences("a", text.splitlines(keepends=True), DataConfig(), labelled=True))
    assert [(row.number, row.text, row.fault) for row in rows] == [
        (3, ["a"], None),
        (6, [], "other than 2 columns"),
    ]


def test_a_sentence_that_is_too_long_is_told_by_its_line():
    text = "a O\nb O\n\nccccc O\nd O\n\ne O\n"

    def rows(on_bad_row):
        data = DataConfig(max_row_bytes=8, on_bad_row=on_bad_row)
        found = sentences("x", text.splitlines(keepends=True), data, labelled=True)
        return [row.text if row.fault is None else (row.number, row.fault) for row in found]

    fault = (5, "longer than data.max_row_bytes=8")
    assert rows("drop") == [["a", "b"], fault, ["e"]]
    assert rows("error") == [["a", "b"], fault]  # and no further
    first = DataConfig(max_row_bytes=5, on_bad_row="drop")
    found = list(sentences("x", ["aaaa O\n", "\n", "b\tO\n"], first, labelled=True))
    assert [row.fault is None for row in found] == [False, True]
