"""The fields of a configuration: their types, defaults and meaning, as `--help` prints them."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """The model: where its weights are and how it computes.

    Attributes:
        path: directory, Hub id or package:NAME/sub/dir of the pretrained weights; null = random
            weights of the shape that `config` describes
        adapter: directory or Hub id of a LoRA of the model at `path`, as `peft` writes it; it is
            merged into the weights, or trained on where lora.rank is its rank; null = none
        task: what the model's head is for
        tokenizer: directory, Hub id or package: of the tokenizer, when it is not beside the weights
        config: transformers config attributes set over those at `path`; all of them, with
            model_type, when `path` is null
        generator: pretraining of an ELECTRA at `path`: directory or Hub id of its generator; null =
            the directory `generator` within that of `path`, where jaxllm puts it
        problem_type: one label a row, several labels a row, or a number
        new_head: where the head at `path` is for other labels than those of the data: train a new
            last layer in place of its own, with a warning, or stop
        pooling: sentence-embedding: the mean or the maximum of a text's tokens, or its first token;
            auto = as sentence-transformers' files at `path` say, else the mean
        tags: token-classification: whether tags mark entities (IOB2, IOB1 with data.on_bad_row:
            repair, BIOES, BILOU, BMES; PER or O with no letter only where it is said), which are
            judged as a whole, or are plain, as parts of speech, and judged word by word; auto =
            plain where none is O and none has a letter of a scheme
        normalize: sentence-embedding: scale vectors to length 1; null = as those files say, else
            true
        dtype: type of the computation; parameters and optimizer stay float32
        attention: what computes it: auto, blocked on CPUs and xla elsewhere; xla and blocked (which
            is xla in rows of less than 128 tokens, and of 128 in training) run everywhere; triton
            on NVIDIA GPUs, in bfloat16, rows of a multiple of 64 tokens; cudnn, likewise for even
            rows; splash on TPU, rows of a multiple of 128 tokens; the last two without dropout of
            attention weights
        remat: what the backward pass computes again instead of keeping: nothing, each layer, or all
            of it but the matrix products
        unroll: layers per iteration of the scan over layers; 0 = all, the fastest step on CPU and
            often on GPU; 1 compiles fastest and suits TPU
    """

    path: str | None = None
    adapter: str | None = None
    task: Literal[
        "sequence-classification",
        "token-classification",
        "sentence-embedding",
        "multiple-choice",
        "question-answering",
        "masked-lm",
        "pretraining",
        "causal-lm",
    ] = "sequence-classification"
    tokenizer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    generator: str | None = None
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = "single_label_classification"
    new_head: Literal["warn", "error"] = "warn"
    pooling: Literal["auto", "mean", "cls", "max"] = "auto"
    normalize: bool | None = None
    tags: Literal["auto", "entities", "plain"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "xla", "blocked", "triton", "cudnn", "splash"] = "auto"
    remat: Literal["none", "full", "dots"] = "none"
    unroll: int = 0


@dataclass(frozen=True)
class DataConfig:
    """The text and the labels, and how they become batches.

    Attributes:
        train: training files (csv, tsv, jsonl, json or conll; to pretrain on also txt, and patterns
            such as mine/*.txt; each also .gz); or folders of folders with a text a file, whose
            label is its folder's name
        dev: files of the dev part
        dataset: Hub id of a data set, in place of files
        dataset_config: its configuration's name
        train_split: its training split
        dev_split: its dev split
        dev_fraction: share of the training rows that is held out as the dev part, where there is no
            other: of each class, and of each set of labels, the same share; rows of equal text,
            questions on one context and pairs with one anchor are in one part; 0 = none
        dev_seed: other rows are held out for another seed; train.seed changes nothing about it
        streaming: read rows as they arrive, and no further than max_*_examples need; training
            begins once these are tokenized. Documents are kept on disk, other rows in memory,
            5 bytes a token; not for token-classification
        format: format of the files; auto = by their names; of tagged words, conll where the name
            is not that of a csv or json file
        encoding: encoding of the files; auto = UTF-8, or what a byte order mark says, or UTF-16
            where every other byte is 0
        delimiter: what stands between the cells of csv and tsv files; auto = comma and tab, or as
            a line such as "sep=;", the header or most rows show
        quoting: what cells of csv and tsv files may stand in: double or single quotes, doubled
            inside, or none, which are text then; auto = none between tabs and else double, where
            the file does not show something else
        max_row_bytes: a row, line or document of more bytes than this is a bad row
        text: column of the text; of tagged words, the column of the words: in jsonl a list; of
            conll files whose columns have no names, the first
        text_pair: column of a second text; of choices: of how each of them begins
        choices: columns of the choices to tell the right one from, or one column with a list
        shots: choices of a causal language model: answered questions of the training part that
            stand before each question of the dev part, drawn by train.seed
        label: column of the label, or of the tags of the words; of conll files whose columns have
            no names, the last; those of CoNLL-U are id, form, lemma, upos, xpos, feats, head,
            deprel, deps and misc. Of several labels a row also a list of columns, one a label, that
            hold 0 or 1
        columns: names of the columns, for files with no header row
        labels: label names in the order of their ids, also where the data have ids or 0/1 vectors
            in place of names; null = those of the Hub data set, else of the training part, sorted;
            of tags of entities O and then every tag of the scheme
        on_bad_row: stop at a row with a missing text or an unknown label, or drop and count it;
            repair = make an illegal sequence of tags legal, and stop at other bad rows
        max_length: tokens of a row; sentence-embedding: a row holds whole pairs, and each text gets
            its half, or with contrastive.negative its third
        truncation: where too long a text is cut; or stop at it; or drop and count it
        packing: put several texts in a row; false = a text a row, padded
        sampler: examples of an epoch: shuffle = each once; balanced = as many, but each class
            equally often, so that those of rare classes come again and of frequent ones only some,
            others in each epoch; of one label a row
        pack_window: shuffled texts among which a place for each is looked for; of padded rows,
            texts of which those of similar length share a batch; 1 = batches as shuffled
        buckets: row lengths of padded batches, rising
        max_train_examples: use the first so many training rows only
        max_dev_examples: use the first so many dev rows only
        documents: what ends a document of a text file: a blank line, as between the articles of
            BERT's corpora, or every line, or the file; a row of another file is a document
        corpus: text that every machine has, in place of files: stdlib = the sources of Python's
            standard library, each a document, for causal-lm, masked-lm and pretraining
        weights: share of each entry of `train` in the tokens of an epoch; null = by their sizes
        workers: threads that tokenize; 0 = one a core
        cache_dir: where tokenized text is kept; null = jaxllm in the user's cache directory
    """

    train: list[str] = field(default_factory=list)
    dev: list[str] = field(default_factory=list)
    dataset: str | None = None
    dataset_config: str | None = None
    train_split: str = "train"
    dev_split: str = "validation"
    dev_fraction: float = 0.0
    dev_seed: int = 0
    streaming: bool = False
    format: Literal["auto", "csv", "tsv", "jsonl", "text", "conll"] = "auto"
    encoding: str = "auto"
    delimiter: str = "auto"
    quoting: Literal["auto", "double", "single", "none"] = "auto"
    max_row_bytes: int = 16 * 2**20
    text: str = "text"
    text_pair: str | None = None
    choices: list[str] | None = None
    shots: int = 0
    label: list[str] | str = "label"
    columns: list[str] | None = None
    labels: list[str] | None = None
    on_bad_row: Literal["error", "drop", "repair"] = "error"
    max_length: int = 128
    truncation: Literal["right", "left", "error", "drop"] = "right"
    packing: bool = True
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    pack_window: int = 1024
    buckets: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    max_train_examples: int | None = None
    max_dev_examples: int | None = None
    documents: Literal["blank_line", "line", "file"] = "blank_line"
    corpus: Literal["stdlib"] | None = None
    weights: list[float] | None = None
    workers: int = 0
    cache_dir: str | None = None

    @property
    def label_columns(self) -> list[str]:
        """The columns of the label: one, or one a label."""
        return self.label if isinstance(self.label, list) else [self.label]

    @property
    def told_labels(self) -> list[str] | None:
        """The label names whose order the user has told; None where they are to be found."""
        return self.label if isinstance(self.label, list) else self.labels

    @property
    def has_dev(self) -> bool:
        """Whether there is a part to evaluate on."""
        own = bool(self.dev) or (self.dataset is not None and bool(self.dev_split))
        return own or self.dev_fraction > 0

    def files(self, split: str) -> list[str]:
        """The files that have the rows of ``split`` "train" or "dev"."""
        return self.train if split == "train" or self.dev_fraction else self.dev

    def limit(self, split: str) -> int | None:
        """Of ``split`` "train" or "dev", how many examples are used; None = all."""
        return self.max_train_examples if split == "train" else self.max_dev_examples


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its schedule and its penalties.

    Attributes:
        name: optimizer as in torch.optim, momentum = SGD with momentum; lion as in its paper
        learning_rate: highest learning rate
        schedule: how the learning rate falls after the warmup
        warmup: below 1: share of all steps; from 1 on: steps
        weight_decay: decay of parameters, decoupled from the gradient (adamw, lion, adafactor) or a
            part of it (the others); null = 0.01 (adamw), 0 (the others)
        beta1: decay of the first moment (adam, adamw, lion)
        beta2: decay of the second moment (adam, adamw, rmsprop), of the momentum (lion); null =
            0.999 (adam, adamw), 0.99 (lion, rmsprop)
        eps: term added to the denominator; null = 1e-08 (adam, adamw, rmsprop), 1e-10 (adagrad)
        momentum: momentum; null = 0.9 (momentum), 0 (rmsprop)
        clip_norm: largest global norm of the gradient; 0 = no clipping
        l1: weight of the sum of absolute parameters in the loss, also in the training loss that is
            logged, not in that of the dev part; its gradient is added after clipping
        l2: likewise, of half the sum of their squares
        penalize: parameters that weight_decay, l1 and l2 cover: kernels = kernels and embeddings;
            all = biases and norms too
        layer_decay: factor of the learning rate from a layer to the one below it
        frozen: patterns of parameter paths that are not trained, such as embeddings/* or blocks/*
    """

    name: Literal["adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad", "lion", "adafactor"] = (
        "adamw"
    )
    learning_rate: float = 2e-5
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    warmup: float = 0.1
    weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    clip_norm: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    penalize: Literal["kernels", "all"] = "kernels"
    layer_decay: float = 1.0
    frozen: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainConfig:
    """The training: how long, in what steps, judged by what.

    Attributes:
        batch_size: examples of an optimizer step; packed rows: on average
        accumulation: parts in which a step's gradient is computed
        epochs: passes over the training part; a finished run goes on where more are asked for
        steps: optimizer steps, likewise; null = what `epochs` come to
        seed: seed of new parameters, order and dropout
        label_smoothing: share of the target that is spread over all labels
        class_weights: weight of each label in the loss, in the order of data.labels, else of the
            model's labels, which the log names; balanced = n / (C * count): n labels in the
            training part, C different ones, count of this one
        eval_every: steps between evaluations; 0 = once an epoch
        eval_batch_size: examples of an evaluation batch; in pretraining, rows
        metric: metric that chooses the best model, as metrics.jsonl has them behind eval/, such as
            accuracy, f1_macro, matthews, roc_auc, pearson, spearman, exact_match, best_f1,
            masked_accuracy, retrieval_accuracy, perplexity or loss; null = the task's own
        patience: evaluations without a better metric before the run stops; 0 = never
        save_every: steps between snapshots of the run; 0 = at each evaluation
        profile: first and last step, as metrics.jsonl counts them, of a trace that is left in
            profile/ of run.dir; null = none
    """

    batch_size: int = 32
    accumulation: int = 1
    epochs: float = 3.0
    steps: int | None = None
    seed: int = 0
    label_smoothing: float = 0.0
    class_weights: list[float] | Literal["balanced"] | None = None
    eval_every: int = 0
    eval_batch_size: int = 64
    metric: str | None = None
    patience: int = 0
    save_every: int = 0
    profile: list[int] | None = None


@dataclass(frozen=True)
class MeshConfig:
    """The devices: one number for each axis of the mesh.

    Attributes:
        data: devices over which batches are split; -1 = all that the other axes leave
        fsdp: devices over which batches and parameters are split
        tensor: devices over which each layer's width is split
        processes: processes that train together, on one host or several; -1 = all that the TPU pod,
            Slurm, Open MPI or Kubernetes has started. Without these each process needs
            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    processes: int = 1


@dataclass(frozen=True)
class RunConfig:
    """The run: where its results go.

    Attributes:
        dir: directory of the results
        seeds: train once for each of these seeds, in `dir`/seed_N; null = once, with train.seed
        keep: newest snapshots that are kept beside the best
        log_every: steps between lines of metrics.jsonl
        trackers: where else the numbers of metrics.jsonl go: TensorBoard's event files, wandb
            (pip install 'wandb>=0.31'; WANDB_MODE=offline needs no network)
        progress: show a progress bar
        push_to_hub: name of a repository of the Hugging Face Hub, such as org/name, that gets what
            is in model/ at the end; null = none
    """

    dir: str = "runs/jaxllm"
    seeds: list[int] | None = None
    keep: int = 2
    log_every: int = 10
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    progress: bool = True
    push_to_hub: str | None = None


@dataclass(frozen=True)
class MaskingConfig:
    """Pretraining: which tokens a masked language model has to guess.

    Attributes:
        unit: what is masked as one: a token, a whole word, or a span of words
        rate: share of the tokens that the model is asked for
        slots: tokens of a row that the head computes; null = `rate` of data.max_length
        words: ending of the files with the words of each text file, separated by spaces, as a
            segmenter writes them: .seg is train.txt.seg for train.txt; null = the tokenizer's words
    """

    unit: Literal["token", "word", "span"] = "token"
    rate: float = 0.15
    slots: int | None = None
    words: str | None = None


@dataclass(frozen=True)
class LanguageModelConfig:
    """Causal language models: what a token sees, and the loss.

    Attributes:
        rows: documents = a token sees its own document alone, and several short ones share a row;
            joined = documents follow each other with the tokenizer's end-of-text token between
            them and are cut into rows, in which a token sees all that is before it
        stride: places between the beginnings of the windows that the dev part is judged in, at most
            data.max_length; a smaller one shows each token more of what is before it and takes
            longer; null = data.max_length
        chat: data.text is a column of messages, each with role and content, that the tokenizer's
            chat template writes as text, and what is learned are the assistant's replies; false
            with data.text_pair: data.text is a prompt, data.text_pair the reply that is learned
        z_loss: weight of the squared log of the softmax's sum in the training loss, as in PaLM
            (1e-4 there)
    """

    rows: Literal["documents", "joined"] = "documents"
    stride: int | None = None
    chat: bool = False
    z_loss: float = 0.0


@dataclass(frozen=True)
class ContrastiveConfig:
    """Sentence embeddings: what is learned from pairs of texts.

    Attributes:
        negative: column of a text unlike the pair, to train on; null = there is none
        score: column of how alike a pair is; null = there is none
        positive_from: train on the pairs of at least this score; null = on all
        temperature: cosines are divided by this in the loss
    """

    negative: str | None = None
    score: str | None = None
    positive_from: float | None = None
    temperature: float = 0.05


@dataclass(frozen=True)
class QAConfig:
    """Question answering: how contexts are cut and answers scored.

    Attributes:
        max_question_length: tokens of a question; a longer one is cut there and counted
        doc_stride: tokens that a window of a long context shares with the one before it
        max_answer_length: tokens of an answer at most
        n_best: answers of each question in nbest_predictions.json
        null_threshold: a question is left unanswered where the score of no answer is above that of
            the best answer by more than this; the best value on the dev part is
            eval/best_f1_thresh
        scoring: how EM and F1 compare answers, by the official script of SQuAD (words) or of
            CMRC 2018 (Chinese characters)
    """

    max_question_length: int = 64
    doc_stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20
    null_threshold: float = 0.0
    scoring: Literal["squad", "cmrc"] = "squad"


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: small matrices are trained beside layers that stay.

    What is trained, and saved in snapshots, are these adapters and the head of a task with labels
    of its own. model/ of run.dir is the model with the adapters merged into it, model/adapter the
    adapter alone, which `peft` loads.

    Attributes:
        rank: rank of an adapter's two matrices; 0 = no adapters, all parameters are trained
        alpha: an adapter's product is scaled by alpha / rank
        dropout: dropout of an adapter's input
        targets: patterns of the layers that get an adapter, such as blocks/attention/* or blocks/*
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["blocks/attention/query", "blocks/attention/value"]
    )


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, in sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    run: RunConfig = field(default_factory=RunConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    lm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    qa: QAConfig = field(default_factory=QAConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
