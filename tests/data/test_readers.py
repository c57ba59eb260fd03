"""Files as people have them: encodings, delimiters, quotes, and rows without end."""

import gzip
import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from jaxllm.config import reading
from jaxllm.config.fields import DataConfig
from jaxllm.data import lines
from jaxllm.data.hub import hub_source
from jaxllm.data.json_stream import JsonText
from jaxllm.data.readers import document_source, file_source
from jaxllm.errors import InputError


@pytest.fixture
def read(tmp_path):
    """(text, label) of each row of a file of the given content; settings by name."""

    def run(content, name="train.csv", **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = DataConfig(**settings)
        rows = list(file_source(path, data, labelled=True).rows())
        assert [row.fault for row in rows] == [None] * len(rows)
        return [(row.text, row.label) for row in rows]

    return run


GERMAN = [("Es war schön – „sehr“ gut", "pos"), ("Schlecht’s Essen", "neg")]
TABLE = "text,label\n" + "".join(f"{text},{label}\n" for text, label in GERMAN)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32-le", b"\xff\xfe\0\0"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_encoding_that_the_file_shows_is_read(read, encoding, mark, ending):
    content = mark + TABLE.replace("\n", "\r\n").encode(encoding)
    content = gzip.compress(content) if ending else content
    assert read(content, "a.csv" + ending) == GERMAN


def test_text_with_a_zero_byte_stays_utf8(read):
    assert read("text,label\nab\0cd,x\n") == [("ab\0cd", "x")]


def test_an_encoding_that_is_given_is_taken(read):
    assert read(TABLE.encode("cp1252"), encoding="cp1252") == GERMAN
    assert read(b"\xef\xbb\xbf" + TABLE.encode(), encoding="UTF8") == GERMAN
    rows = "".join(
        json.dumps({"text": t, "label": x}, ensure_ascii=False) + "\n" for t, x in GERMAN
    )
    assert read(rows.encode("utf-16"), "a.jsonl") == GERMAN
    with pytest.raises(InputError, match=r"line 2: byte 0x81 at offset 12 is not CP1252"):
        read(b"text,label\na\x81,x\n", encoding="cp1252")
    # Python 3.13 says this as any byte that does not fit, and before that as a fault of its own
    with pytest.raises(InputError, match=r"does not start with BOM|at offset 0 is not UTF-16"):
        read(TABLE.encode(), encoding="utf-16")
    for wrong in ("base64", "windows"):
        with pytest.raises(InputError, match=r"data\.encoding: found .*gb18030"):
            reading.load(["--data.train", "[a]", "--model.path=m", f"--data.encoding={wrong}"])


@pytest.mark.parametrize(
    ("encoding", "text", "reading"),
    [
        ("gb18030", "我爱北京 天安门", "gb18030 (我爱北京 天安门"),
        ("cp1252", "Es war schön – gut", "cp1252 (schön –"),
        ("cp1251", "Это было хорошо", "cp1251 (Это было хорошо)"),
        ("shift_jis", "とても 良かった", "shift_jis (とても 良かった)"),
        ("cp949", "아주 좋았다", "cp949 (아주 좋았다)"),
        ("big5", "非常 好看", "big5 (非常 好看)"),
    ],
)
@pytest.mark.parametrize("before", [0, 70_000])
def test_a_file_in_another_encoding_is_refused_with_those_that_fit(
    read, encoding, text, reading, before
):
    content = "text,label\n" + "good,x\n" * before + f"{text},y\n"
    with pytest.raises(InputError) as error:
        read(content.encode(encoding))
    message = str(error.value)
    assert f"train.csv, line {before + 2}: byte " in message
    assert reading in message
    assert "data.encoding" in message
    assert "latin1" not in message
    assert len(message) < 1000


def test_encodings_that_do_not_fit_are_not_named(read):
    with pytest.raises(InputError) as error:
        read(b"text,label\n\xe9t\xe9 \x81\x8d,x\n")  # 0x81 is nothing in cp1252
    assert "cp1252" not in str(error.value)
    with pytest.raises(InputError, match="which the text before it is; is the file damaged there"):
        read("text,label\nschön,x\n".encode() + b"sch\xf6n,y\n")
    with pytest.raises(InputError, match=r"line 2: byte 0xc3 at offset 13"):
        read(b"text,label\nab\xc3")  # the last character is cut


QUOTED = [
    # what stands in the file, its name, the settings, and its rows
    ('text\tlabel\nHello\tx\n"He said ""hi"""\ty\n', "a.tsv", {}, ["Hello", 'He said "hi"']),
    ('text\tlabel\nHello\tx\n"one\ttwo"\ty\n', "a.tsv", {}, ["Hello", "one\ttwo"]),
    ('text\tlabel\nHello\tx\n"one\ntwo"\ty\n', "a.tsv", {}, ["Hello", "one\ntwo"]),
    ('"text"\t"label"\n"Hello"\t"x"\n"you"\t"y"\n', "a.tsv", {}, ["Hello", "you"]),
    ('"Hello"\tx\n"you"\ty\n', "a.tsv", {"columns": ["text", "label"]}, ["Hello", "you"]),
    # Quotes of the text itself.
    ('text\tlabel\n"Hello" he said\tx\n"you"\ty\n', "a.tsv", {}, ['"Hello" he said', '"you"']),
    ('text\tlabel\n"Hello\tx\nyou"\ty\n', "a.tsv", {}, ['"Hello', 'you"']),
    ('text\tlabel\nHello\tx\n"you"\ty\n', "a.tsv", {}, ["Hello", '"you"']),
    ("text,label\n'tis,x\nyou,y\n", "a.csv", {}, ["'tis", "you"]),
    # Told.
    ('text\tlabel\nHello\tx\n"you"\ty\n', "a.tsv", {"quoting": "double"}, ["Hello", "you"]),
    ('text,label\n"Hello,x\n', "a.csv", {"quoting": "none"}, ['"Hello']),
    ("text,label\n'a, b',x\n'tis',y\n", "a.csv", {"quoting": "single"}, ["a, b", "tis"]),
    ("text_label\nHello_x\n", "a.csv", {"delimiter": "_"}, None),
    # Semicolons, tabs and bars.
    ("text;label\nHello, you;x\n", "a.csv", {}, ["Hello, you"]),
    ("label;text\nx;'a; b'\ny;'it''s'\n", "a.csv", {}, ["a; b", "it's"]),
    ('text\tlabel\n"a ""b"", c"\tx\n', "a.csv", {}, ['a "b", c']),
    ("text|label\nHello|x\n", "a.tsv", {}, ["Hello"]),
    ("text|label\nHello|x\n", "a.csv", {"delimiter": "|"}, ["Hello"]),
    ("text\tlabel\nHello\tx\n", "a.csv", {"delimiter": "\\t"}, ["Hello"]),
    ("Hello, you;x\nyou;y\n", "a.csv", {"columns": ["text", "label"]}, ["Hello, you", "you"]),
    ('text\tlabel\n"Hello" he said\tx\n', "a.csv", {}, ['"Hello" he said']),
    # Excel's first line.
    ("sep=,\ntext,label\nHello,x\n", "a.csv", {}, ["Hello"]),
    ('"sep=;"\r\ntext;label\r\n"a ""b""";x\r\n', "a.csv", {}, ['a "b"']),
    ("sep=\t\ntext\tlabel\nHello\tx\n", "a.csv", {}, ["Hello"]),
]


@pytest.mark.parametrize(("content", "name", "settings", "texts"), QUOTED)
def test_cells_are_divided_and_quoted_as_the_file_shows(read, content, name, settings, texts):
    if texts is None:  # the header is one name
        settings, texts = settings | {"columns": ["text", "label"]}, ["text", "Hello"]
    assert [text for text, _ in read(content, name, **settings)] == texts


def test_ten_thousand_german_articles_and_what_pandas_writes(read):
    article = 'Die Firma, die das Handy baut, meldet "Rekorde" im Quartal.'
    rows = [("Web", article), ("Sport", "Der Klub gewinnt 3:1; die Fans feiern.")] * 4
    content = "".join(f"{label};'{text}'\n" for label, text in rows)
    found = read(content, columns=["label", "text"])
    assert [(label, text) for text, label in found] == rows


def test_the_first_quoted_cell_of_a_tsv_may_be_far_down(read):
    plain = "".join(f"text {i}\tx\n" for i in range(3000))
    found = read("text\tlabel\n" + plain + '"a ""b"""\ty\n' + plain, "a.tsv")
    assert found[3000] == ('a "b"', "y")
    assert len(found) == 6001


def test_what_was_found_is_said(read, caplog):
    with caplog.at_level("INFO"):
        read("text;label\nHello;x\n")
    assert "train.csv: read with data.delimiter: ';', data.quoting: double" in caplog.text


def test_row_numbers_stay_right_behind_a_separator_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('sep=;\ntext;label\n"one\ntwo";x\n\nthree;y;z\n')
    rows = list(file_source(path, DataConfig(), labelled=True).rows())
    assert [(row.number, row.fault) for row in rows] == [(1, None), (3, "more than 2 fields")]
    path.write_text('sep=;\ntext;label\na;x\n"b;y\nc;z\n')
    with pytest.raises(InputError, match=r"row 2 \(up to line 5\): not valid csv.*quoting: none"):
        list(file_source(path, DataConfig(), labelled=True).rows())


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(InputError, match=r"data\.delimiter: found"):
        reading.load(["--data.train", "[a]", "--model.path=m", f"--data.delimiter={delimiter}"])


LONG = "x" * 60
JSONL = "".join(
    json.dumps({"text": text, "label": label}) + "\n"
    for text, label in (("Hello", "a"), (LONG, "b"), ("you", "c"))
)
ROWS = {
    "a.csv": f"text,label\nHello,a\n{LONG},b\nyou,c\n",
    "a.tsv": f"text\tlabel\nHello\ta\n{LONG}\tb\nyou\tc\n",
    "a.jsonl": JSONL,
    "a.conll": f"Hello O\n\n{LONG} O\n\nyou O\n",
    "b.conll": "Hello O\n\n" + "word O\n" * 9 + "\nyou O\n",
    "a.jsonl.gz": JSONL,
}


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_too_many_bytes_is_a_bad_row(tmp_path, name, on_bad_row):
    content = ROWS[name].encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    data = DataConfig(max_row_bytes=48, on_bad_row=on_bad_row)
    rows = list(file_source(path, data, labelled=True).rows())
    faults = [None, "longer than data.max_row_bytes=48", None]
    # Where a bad row stops the run, what is behind it is not unpacked any more.
    assert [row.fault for row in rows] == (faults if on_bad_row == "drop" else faults[:2])
    whole = DataConfig(max_row_bytes=1000)
    assert [row.fault for row in file_source(path, whole, labelled=True).rows()] == [None] * 3


def test_bytes_count_and_not_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": "好" * 10, "label": "x"}, ensure_ascii=False) + "\n"
    path.write_text(row)
    size = len(row.encode())
    for limit, fault in ((size, None), (size - 1, f"longer than data.max_row_bytes={size - 1}")):
        data = DataConfig(max_row_bytes=limit)
        assert [row.fault for row in file_source(path, data, labelled=True).rows()] == [fault]


@pytest.mark.parametrize("documents", ["line", "blank_line"])
@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_a_document_of_too_many_bytes_is_a_bad_row(tmp_path, documents, on_bad_row):
    path = tmp_path / "a.txt"
    long = LONG if documents == "line" else "a line\n" * 9
    end = "\n" if documents == "line" else "\n\n"
    path.write_text(f"Hello{end}{long}{end}you\n")
    data = DataConfig(max_row_bytes=48, documents=documents, on_bad_row=on_bad_row)
    rows = [(row.text.strip(), row.fault) for row in document_source(path, data).rows()]
    faulty = ("", "longer than data.max_row_bytes=48")
    texts = [text for text, fault in rows if fault is None]
    assert [fault for _, fault in rows].count(faulty[1]) == 1
    assert texts == (["Hello", "you"] if on_bad_row == "drop" else ["Hello"])


def test_a_quote_that_nothing_closes_is_not_read_to_the_end(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,x\n"b,y\n' + "c,z\n" * 100_000)
    taken = []
    whole = lines.lines
    monkeypatch.setattr(
        "jaxllm.data.readers.lines",
        lambda *args: (taken.append(line) or line for line in whole(*args)),
    )
    with pytest.raises(InputError, match=r"row 2 .*longer than data\.max_row_bytes=100.*quoting"):
        list(file_source(path, DataConfig(max_row_bytes=100), labelled=True).rows())
    assert len(taken) < 1100  # 1000 are looked at


def test_gzip_that_unpacks_without_end_takes_little_memory(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b" " * 100_000_000, 1))
    data = DataConfig(max_row_bytes=100_000)
    tracemalloc.start()
    rows = list(file_source(path, data, labelled=True).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.fault for row in rows] == ["longer than data.max_row_bytes=100000"]
    assert peak < 2_000_000


def test_an_array_of_json_is_read_an_item_at_a_time(tmp_path, read):
    rows = [{"text": f"a [{i}]\n", "label": i, "more": {"x": [1.5e-3, None]}} for i in range(5000)]
    for content in (json.dumps(rows), json.dumps(rows, indent=2), "\ufeff" + json.dumps(rows)):
        assert read(content, "a.json") == [(row["text"], row["label"]) for row in rows]
    assert len(json.dumps(rows)) > 2 * 65536
    path = tmp_path / "a.json"
    source = file_source(path, DataConfig(max_row_bytes=20), labelled=True)
    with pytest.raises(InputError, match=r"a\.json: not JSON: line 1: longer than data\.max_row"):
        list(source.rows())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a", "label": 0}\n, {"text": ]', "line 2: Expecting value"),
        ('[{"text": "a", "label": 0}\n {"text": "b"}]', "line 2: expected , or ]"),
        ('[{"text": "a", "label": 0}]\n x', "line 2: expected the end, behind an array"),
        ('[{"text": "a", "label": 0}\n', "line 2: expected , or ]"),
        ('[{"text": "a", "label": 0}, [[[]]]]', "item 2: found list, expected an object"),
        ("[" + "[" * 100_000, "line 1: nested too deeply"),
        ('[{"text": ' + "[" * 100_000 + "]" * 100_000 + "}]", "line 1: nested too deeply"),
    ],
)
def test_a_broken_array_of_json_is_said_with_its_line(read, content, message):
    with pytest.raises(InputError) as error:
        read(content, "a.json")
    assert message in str(error.value)


def test_deep_json_on_a_line_is_said_with_the_line(read):
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not JSON.*recursion"):
        read('{"text": "a", "label": 0}\n' + deep + "\n", "a.jsonl")


def test_values_of_json_wherever_the_text_is_cut(monkeypatch, tmp_path):
    values = [1, -2.5e-7, 'a\\u00e9"]', [1, {"b": None}], True, {"": "x" * 50}, 1e300, "", 12]
    text = json.dumps(values, indent=1)
    path = Path(tmp_path / "a.json")
    path.write_text(text)
    for block in itertools.chain(range(1, 40), [1000]):
        monkeypatch.setattr("jaxllm.data.json_stream._BLOCK", block)
        with path.open() as file:
            assert list(JsonText(file, 1000).whole_array()) == values


def test_a_row_of_the_hub_of_too_many_bytes_is_a_bad_row(tmp_path):
    import datasets

    rows = [{"text": text, "label": 1} for text in ("Hello", LONG, "好" * 17, "好" * 16)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "set" / "train.parquet"))
    data = DataConfig(dataset=str(tmp_path / "set"), max_row_bytes=48)
    faults = [row.fault for row in hub_source(data, "train", labelled=True).rows()]
    fault = "longer than data.max_row_bytes=48"
    assert faults == [None, fault, fault, None]
