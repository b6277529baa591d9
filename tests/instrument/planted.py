"""The planted control: models of which it is known by construction where the entity arrives.

A tiny Llama learns facts and names of synthetic entities from their names. Its decoder is then given eyes four times,
always the same frozen decoder and a small tower that reads an entity's code from a picture:

| receiver | what its image tokens hold | truth |
|---|---|---|
| early | the code, in the language model's own directions, at the embedding | resolved before the first layer |
| late | a word that says nothing; layer `LATE_LAYER` adds the code to its output | resolved there and no earlier |
| untrained | the code at the embedding, through a random adapter | readable, but never in the model's directions |
| blind | as early, from the code of another picture | nothing of the entity anywhere |

The instruments of the study must find that truth. `python tests/instrument/planted.py` prints the table.

How "too late" is made: names are points of a five-bit code, and facts are arbitrary functions of it, so that no linear
read-out can hold them; the training penalises writes the more the deeper they are, so MLPs recall early.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from twohop.analysis import (
    Contrast,
    Readings,
    Runner,
    TrainingSet,
    Translator,
    attribute,
    entity_sums,
    first_near_maximum,
    fit_probes,
    fit_translator,
    group_scores,
    layers_of_windows,
    name_hits,
    resolution_depth,
    share,
    summarise_run,
)
from twohop.models import Batch, Knockout, Model, ModelCard, Patch, Prompt, Site, Tokens
from twohop.models import Picture as Seen
from twohop.models._sites import SiteKind

N_LAYERS, D_MODEL, PAYLOAD = 8, 48, 8
"""The last PAYLOAD channels of every embedding are 0; in a picture's tokens they carry the late receiver's code."""
LATE_LAYER = 4
"""The late receiver's code is added to the output of this layer (counted from 0)."""
N_ENTITIES, N_BITS, N_ANSWERS, N_IMAGE_TOKENS = 20, 5, 10, 2
RELATIONS = ("capital", "colour")
TEMPLATES = (
    ("consider the thing ", " . its {} is"),
    ("look at ", " now . the {} of it is"),
    ("tell ", " and here . this {} is"),
    ("please look at the thing ", " . what is its {} . it is"),
    ("about ", " . its {} is"),
)
"""The first is asked; the others keep the model from learning a position by heart."""
STEPS, BATCH, PEAK_RATE = 220, 64, 6e-3
LATE_PENALTY = 0.1
"""Weight of the mean squared write of the last layer; of layer l times (l / last)^2."""
CODE_SCALE, WORD_SCALE = 0.35, 0.15
LATE_GAIN = 3.0
"""The late code is that much longer than the early one, as the residual has grown until there."""
PLACEHOLDER = "thing"
"""The word that stands where a late code will arrive."""
D_PICTURE, NOISE = 24, 0.35
TRAIN_STYLES, TEST_STYLE = ("drawn", "painted"), "photographed"
PER_STYLE = 4
"""Pictures of an entity in each style."""
RECEIVERS = ("early", "late", "untrained", "blind")
EMBEDDING = Site("resid_post", -1)
KINDS: tuple[SiteKind, ...] = ("resid_post", "mlp_write", "attn_write")
L2 = [0.1]
N_BOOT, N_PERMUTED = 400, 20


@dataclass(frozen=True)
class Picture:
    """A synthetic picture: a vector that a prototype, a style and noise have made."""

    id: str
    entity: int
    style: str
    pixels: Tensor


@dataclass(frozen=True)
class World:
    """Entities, their facts, their pictures."""

    code: Tensor
    """Float["entity bit"], each -1 or 1."""
    facts: dict[str, list[str]]
    pictures: list[Picture]

    @property
    def names(self) -> list[str]:
        return [f"e{i}" for i in range(N_ENTITIES)]

    def answers(self, relation: str) -> list[str]:
        return self.names if relation == "name" else self.facts[relation]


def make_world(seed: int = 0) -> World:
    """Every answer belongs to N_ENTITIES / N_ANSWERS entities, drawn without regard to their codes."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(2**N_BITS, generator=draw)[:N_ENTITIES]
    code = torch.stack([((numbers >> b) & 1) * 2.0 - 1 for b in range(N_BITS)], 1)
    facts = {
        relation: [f"{relation[:2]}{int(k) % N_ANSWERS}" for k in torch.randperm(N_ENTITIES, generator=draw)]
        for relation in RELATIONS
    }
    return World(code, facts, _pictures(draw))


def _pictures(draw: torch.Generator) -> list[Picture]:
    prototypes = torch.randn(N_ENTITIES, D_PICTURE, generator=draw)
    found: list[Picture] = []
    for style in (*TRAIN_STYLES, TEST_STYLE):
        gain = 1 + 0.2 * torch.randn(D_PICTURE, generator=draw)
        offset = 0.3 * torch.randn(D_PICTURE, generator=draw)
        for entity in range(N_ENTITIES):
            for k in range(PER_STYLE):
                noise = NOISE * torch.randn(D_PICTURE, generator=draw)
                found.append(
                    Picture(f"e{entity}/{style}{k}", entity, style, (prototypes[entity] + noise) * gain + offset)
                )
    return found


# --- the language model -----------------------------------------------------------------------------------------------


def make_tokenizer(world: World) -> Any:
    """One token per word, name and answer."""
    text = " ".join(before + after for before, after in TEMPLATES).replace("{}", "")
    words = [*dict.fromkeys(text.split()), *RELATIONS, "name"]
    answers = [f"{relation[:2]}{k}" for relation in RELATIONS for k in range(N_ANSWERS)]
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unknown>", *words, *world.names, *answers])}
    raw: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<image>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>", unk_token="<unknown>")


def build_net(tokenizer: Any, code: Tensor) -> tuple[Any, Tensor]:
    """A small LLaVA whose names are embedded as their codes; the N_BITS directions of the code."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    tower = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image,
        image_seq_length=N_IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    net: Any = LlavaForConditionalGeneration(config)
    directions = _orthogonal(CODE_SCALE)
    names = tokenizer.convert_tokens_to_ids([f"e{i}" for i in range(N_ENTITIES)])
    table = net.get_input_embeddings().weight
    with torch.no_grad():
        table.normal_(0, WORD_SCALE)
        table[:, -PAYLOAD:] = 0
        table[names] = code @ directions
    table.register_hook(lambda grad: _kept_fixed(grad, names))
    return net, directions


def _orthogonal(scale: float) -> Tensor:
    """Float["bit d_model"]: orthogonal directions outside the payload's channels."""
    square = torch.linalg.qr(torch.randn(D_MODEL - PAYLOAD, N_BITS))[0].T * scale
    return nn.functional.pad(square, (0, PAYLOAD))


def _kept_fixed(grad: Tensor, names: Sequence[int]) -> Tensor:
    grad = grad.clone()
    grad[names] = 0
    grad[:, -PAYLOAD:] = 0
    return grad


@dataclass
class LateAdapter:
    """Part of the net: what the payload's channels of the embedding hold reaches the residual stream only at the
    output of `LATE_LAYER`. Words have an empty payload, so in text it adds 0.
    """

    directions: Tensor
    code: Tensor | None = None

    def payload(self, code: Tensor) -> Tensor:
        """Float["... d_model"] of Float["... bit"]."""
        return nn.functional.pad(code, (D_MODEL - PAYLOAD, PAYLOAD - N_BITS))

    def strip(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the first layer: take the payload out."""
        states = args[0] if args else kwargs["hidden_states"]
        self.code = states[..., D_MODEL - PAYLOAD :][..., :N_BITS]
        empty = nn.functional.pad(states[..., : D_MODEL - PAYLOAD], (0, PAYLOAD))
        return ((empty, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": empty})

    def write(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """After LATE_LAYER: add the code."""
        assert self.code is not None
        return output + self.code @ self.directions * LATE_GAIN

    def install(self, net: Any) -> None:
        """Into the decoder, before any other hook."""
        stack = net.get_decoder().layers
        stack[0].register_forward_pre_hook(self.strip, with_kwargs=True)
        stack[LATE_LAYER].register_forward_hook(self.write)


def train(net: Any, tokens: Tokens, world: World, adapter: LateAdapter) -> float:
    """Teach facts and names from names, and names alone from a code that arrives late. Returns the last loss.

    Names are also shown twice in a row, as a picture's two tokens will be.
    """
    reader = Model(net, _card("llava"), tokens)
    prompts, answers, late = _lessons(world)
    batch = reader.batch(prompts)
    wanted = torch.tensor([tokens.tokenize(a)[0] for a in answers])
    payload = batch.groups["entity"][..., None] * adapter.payload(late)[:, None]
    text = [p for n, p in net.named_parameters() if "vision" not in n and "projector" not in n]
    for parameter in text:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(text, lr=PEAK_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=STEPS)
    writes: dict[tuple[int, str], Tensor] = {}
    handles = [
        part.register_forward_hook(_keeper(writes, (n, kind)))
        for n, layer in enumerate(reader.decoder.layers)
        for kind, part in (("mlp", layer.mlp), ("attention", layer.self_attn))
    ]
    draw = torch.Generator().manual_seed(1)
    loss = torch.zeros(())
    for _ in range(STEPS):
        rows = torch.randint(len(prompts), (BATCH,), generator=draw)
        out = net(
            inputs_embeds=net.get_input_embeddings()(batch.input_ids[rows]) + payload[rows],
            attention_mask=batch.attention_mask[rows],
            position_ids=batch.position_ids[rows],
            logits_to_keep=1,
            use_cache=False,
        )
        loss = nn.functional.cross_entropy(out.logits[:, -1], wanted[rows])
        depth = torch.stack([(n / (N_LAYERS - 1)) ** 2 * w.pow(2).mean() for (n, _), w in writes.items()]).sum()
        optimiser.zero_grad()
        (loss + LATE_PENALTY * depth).backward()
        optimiser.step()
        schedule.step()
    for handle in handles:
        handle.remove()
    net.requires_grad_(False)
    return float(loss.detach())


def _keeper(writes: dict[tuple[int, str], Tensor], key: tuple[int, str]) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        writes[key] = output[0] if isinstance(output, tuple) else output

    return keep


def _lessons(world: World) -> tuple[list[Prompt], list[str], Tensor]:
    """Prompts, answers, and the code that each gets late (0 where the name says it)."""
    prompts: list[Prompt] = []
    answers: list[str] = []
    late: list[Tensor] = []
    nothing = torch.zeros(N_BITS)
    for before, after in TEMPLATES:
        for relation in (*RELATIONS, "name"):
            for name, answer, code in zip(world.names, world.answers(relation), world.code, strict=True):
                shown = [(name, nothing), (f"{name} {name}", nothing)]
                if relation == "name":
                    shown.append((f"{PLACEHOLDER} {PLACEHOLDER}", code))
                prompts += [Prompt(before, written, after.format(relation)) for written, _ in shown]
                late += [arriving for _, arriving in shown]
                answers += [answer] * len(shown)
    return prompts, answers, torch.stack(late)


def _card(name: str, role: str = "vlm") -> ModelCard:
    return ModelCard.model_construct(name=name, family="llava", role=role, n_image_tokens=N_IMAGE_TOKENS)


# --- eyes -------------------------------------------------------------------------------------------------------------


def train_tower(world: World) -> nn.Module:
    """A two-layer network from pictures to codes, trained on the training styles alone."""
    tower = nn.Sequential(nn.Linear(D_PICTURE, 64), nn.GELU(), nn.Linear(64, N_BITS))
    seen = [p for p in world.pictures if p.style in TRAIN_STYLES]
    pixels, wanted = torch.stack([p.pixels for p in seen]), world.code[[p.entity for p in seen]]
    optimiser = torch.optim.AdamW(tower.parameters(), lr=5e-3, weight_decay=1e-2)
    for _ in range(300):
        moved = pixels + 0.5 * NOISE * torch.randn(pixels.shape)
        optimiser.zero_grad()
        nn.functional.mse_loss(tower(moved), wanted).backward()
        optimiser.step()
    return tower.requires_grad_(False)


@dataclass
class Receiver:
    """A model, and its image tokens for every picture of the world."""

    name: str
    model: Model
    features: dict[str, Tensor]

    def prompt(self, picture: Picture, template: tuple[str, str], relation: str) -> Prompt:
        return Prompt(template[0], None, template[1].format(relation), Seen(self.features[picture.id]))


class Study:
    """The trained language model, the tower, and the four receivers."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.world = make_world(seed)
        tokenizer = make_tokenizer(self.world)
        self.tokens = Tokens(tokenizer, N_IMAGE_TOKENS, tokenizer.convert_tokens_to_ids("<image>"))
        self.net, self.directions = build_net(tokenizer, self.world.code)
        self.adapter = LateAdapter(self.directions)
        self.adapter.install(self.net)
        self.loss = train(self.net, self.tokens, self.world, self.adapter)
        self.backbone = Model(self.net, _card("backbone", "backbone"), self.tokens)
        self.tower = train_tower(self.world)
        untrained = _orthogonal(CODE_SCALE)
        word = self.net.get_input_embeddings().weight[self.token(PLACEHOLDER)]
        codes = torch.stack([self.tower(p.pixels) for p in self.world.pictures])
        others = codes[torch.randperm(len(codes))]
        self.receivers = {
            "early": self._receiver("early", codes @ self.directions),
            "late": self._receiver("late", word + self.adapter.payload(codes)),
            "untrained": self._receiver("untrained", codes @ untrained),
            "blind": self._receiver("blind", others @ self.directions),
        }

    def token(self, word: str) -> int:
        return self.tokens.tokenize(word)[0]

    def _receiver(self, name: str, rows: Tensor) -> Receiver:
        """Every image token of a picture is the same row."""
        shown = zip(self.world.pictures, rows, strict=True)
        features = {p.id: row.expand(N_IMAGE_TOKENS, -1).clone() for p, row in shown}
        return Receiver(name, Model(self.net, _card(name), self.tokens), features)

    def named(self, name: str, relation: str) -> Prompt:
        before, after = TEMPLATES[0]
        return Prompt(before, name, after.format(relation))

    def test_pictures(self, style: str = TEST_STYLE) -> list[Picture]:
        return [p for p in self.world.pictures if p.style == style]


# --- the instruments --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twins:
    """Clean prompts, their twins with another entity of another answer, and the two answers."""

    clean: list[Prompt]
    corrupted: list[Prompt]
    contrast: Contrast

    def permuted(self, seed: int) -> "Twins":
        """The negative control: every pair is measured with the answers of a pair drawn at random."""
        order = torch.randperm(len(self.clean), generator=torch.Generator().manual_seed(seed))
        return Twins(self.clean, self.corrupted, Contrast(self.contrast.clean[order], self.contrast.corrupted[order]))


def make_twins(study: Study, receiver: Receiver | None) -> Twins:
    """One per entity and relation: names for the backbone (None), pictures of the held-out style for a receiver."""
    shown = {p.entity: p for p in study.test_pictures()}

    def ask(entity: int, relation: str) -> Prompt:
        if receiver is None:
            return study.named(study.world.names[entity], relation)
        return receiver.prompt(shown[entity], TEMPLATES[0], relation)

    clean: list[Prompt] = []
    corrupted: list[Prompt] = []
    answers: list[tuple[int, int]] = []
    for relation in RELATIONS:
        facts = study.world.facts[relation]
        for entity in range(N_ENTITIES):
            other = next(o % N_ENTITIES for o in range(entity + 7, 99) if facts[o % N_ENTITIES] != facts[entity])
            clean.append(ask(entity, relation))
            corrupted.append(ask(other, relation))
            answers.append((study.token(facts[entity]), study.token(facts[other])))
    pairs = torch.tensor(answers)
    return Twins(clean, corrupted, Contrast(pairs[:, 0], pairs[:, 1]))


def all_sites() -> list[Site]:
    return [Site(kind, layer) for kind in KINDS for layer in range(N_LAYERS)]


def score(model: Model, twins: Twins, sites: Sequence[Site] | None = None) -> dict[tuple[Site, str], Tensor]:
    """Signed attribution of every node (or of some sites') and pair, as score_attribution takes it."""
    clean, corrupted = model.batch(twins.clean), model.batch(twins.corrupted)
    sites = [EMBEDDING, *all_sites()] if sites is None else sites
    found = attribute(Runner(model.run, Patch), clean, corrupted, twins.contrast, sites, EMBEDDING)
    return group_scores(found.positions, clean.groups)


def score_table(scores: dict[tuple[Site, str], Tensor], run: str) -> pl.DataFrame:
    """`schemas.SCORES`: means over pairs, with and without sign."""
    rows = [
        {
            "run": run,
            "kind": site.kind,
            "layer": site.layer,
            "group": group,
            "mean_abs": float(values.abs().mean()),
            "mean_signed": float(values.mean()),
            "n_examples": len(values),
        }
        for (site, group), values in scores.items()
        if site != EMBEDDING
    ]
    return pl.DataFrame(rows)


def attribution_depth(scores: dict[tuple[Site, str], Tensor], run: str) -> float | None:
    """Centre of mass of the MLPs' |score| at the entity's tokens; 0 is the first layer, 1 the last."""
    found = summarise_run(score_table(scores, run), run, N_LAYERS)["mlp_centre_entity"]
    assert found is None or isinstance(found, float)
    return found


def probe_curves(study: Study, receiver: Receiver) -> pl.DataFrame:
    """A probe and its control per layer and feature, fitted as train_probes fits them; layer 0 is the embedding.

    Columns feature, layer, accuracy, low, high, shuffled_accuracy, on pictures of the held-out style.
    """
    world, sites = study.world, [Site("resid_post", n) for n in range(-1, N_LAYERS)]
    batch = receiver.model.batch([receiver.prompt(p, TEMPLATES[0], "name") for p in world.pictures])
    states = receiver.model.run(batch, sites).activations
    train = [i for i, p in enumerate(world.pictures) if p.style in TRAIN_STYLES]
    test = [i for i, p in enumerate(world.pictures) if p.style == TEST_STYLE]
    labels = np.array([p.entity for p in world.pictures])
    names = [world.pictures[i].id for i in train]
    rows: list[dict[str, Any]] = []
    for feature in ("image", "last"):
        x = np.stack([pooled(states[site], batch.groups[feature]) for site in sites])
        every, shuffled = fit_and_test(TrainingSet(x[:, train], labels[train], names), x[:, test], labels[test])
        for layer, (hits, control) in enumerate(zip(every, shuffled, strict=True)):
            sums = entity_sums([str(e) for e in labels[test]], [hits, np.ones(len(hits))])
            found = share(sums, N_BOOT, 0)
            row = {"feature": feature, "layer": layer, "accuracy": found.value, "low": found.low, "high": found.high}
            rows.append({**row, "shuffled_accuracy": float(control.mean())})
    return pl.DataFrame(rows)


def pooled(states: Tensor, mask: Tensor) -> np.ndarray:
    """Float32["row d_model"]: mean over a group's tokens."""
    weight = mask[..., None].to(states)
    return ((states * weight).sum(1) / weight.sum(1)).float().numpy()


def fit_and_test(
    data: TrainingSet, features: np.ndarray, labels: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bool["layer picture"] hits of the probes and of their shuffled-label controls; features are by layer."""
    probes, controls = fit_probes(data, L2, 3, seed)
    made = [np.stack([p.predict(x) == labels for p, x in zip(ps, features, strict=True)]) for ps in (probes, controls)]
    return made[0], made[1]


def probe_depth(curves: pl.DataFrame, feature: str = "image") -> float:
    """First layer with 90 % of the curve's own maximum, as a share of depth: 0 embedding, 1 after the last layer."""
    rows = curves.filter(pl.col("feature") == feature)
    return first_near_maximum(rows["layer"].to_list(), rows["accuracy"].to_list()) / N_LAYERS


def accuracy(study: Study, receiver: Receiver | None, relation: str) -> float:
    """Share of right answers, greedy; from names (None) or from pictures of the held-out style."""
    answers = study.world.answers(relation)
    if receiver is None:
        model, shown = study.backbone, list(range(N_ENTITIES))
        prompts = [study.named(n, relation) for n in study.world.names]
    else:
        model, pictures = receiver.model, study.test_pictures()
        shown = [p.entity for p in pictures]
        prompts = [receiver.prompt(p, TEMPLATES[0], relation) for p in pictures]
    written = model.generate(model.batch(prompts), 1)
    return float(np.mean([w == answers[e] for w, e in zip(written, shown, strict=True)]))


# --- resolution depth -------------------------------------------------------------------------------------------------

METHODS = ("logit_lens", "tuned_lens", "patchscope", "knockout")
WINDOW, PERMUTATIONS, LENS_STEPS = 3, 400, 60


@dataclass(frozen=True)
class Asked:
    """The naming prompt of every entity, one picture each (or its name), and the first tokens of all names."""

    model: Model
    batch: Batch
    tokens: list[int]

    @property
    def where(self) -> Tensor:
        """Tokens of the picture or of the name."""
        return self.batch.groups["image"] | self.batch.groups["entity"]

    def hits(self, logits: Tensor) -> np.ndarray:
        """Float["entity candidate"]: 1 where the candidate's name is the most probable of all names."""
        return name_hits(logits.numpy(), self.tokens, self.tokens, self.tokens)


def ask_names(study: Study, receiver: Receiver | None) -> Asked:
    tokens = [study.token(name) for name in study.world.names]
    if receiver is None:
        prompts = [study.named(name, "name") for name in study.world.names]
        return Asked(study.backbone, study.backbone.batch(prompts), tokens)
    shown = {p.entity: p for p in study.test_pictures()}
    prompts = [receiver.prompt(shown[e], TEMPLATES[0], "name") for e in range(N_ENTITIES)]
    return Asked(receiver.model, receiver.model.batch(prompts), tokens)


def entity_states(asked: Asked) -> list[Tensor]:
    """By layer (0: embedding) the mean residual at each entity's tokens, Float["entity d_model"]."""
    sites = [Site("resid_post", n) for n in range(-1, N_LAYERS)]
    states = asked.model.run(asked.batch, sites).activations
    return [torch.from_numpy(pooled(states[site], asked.where)) for site in sites]


@torch.no_grad()
def read_lens(asked: Asked, translators: Sequence[Callable[[Tensor], Tensor]] | None = None) -> Readings:
    """Logit lens, or the tuned lens with its translators, at the entity's tokens."""
    scores = [
        asked.hits(asked.model.unembed(h if translators is None else translators[n](h), asked.tokens))
        for n, h in enumerate(entity_states(asked))
    ]
    return Readings(tuple(range(N_LAYERS + 1)), np.stack(scores))


def tune(study: Study) -> list[Translator]:
    """The tuned lens of the language model, trained on text alone; whole entities are held out."""
    prompts = [p for p, _, late in zip(*_lessons(study.world), strict=True) if not bool(late.any())]
    model, sites = study.backbone, [Site("resid_post", n) for n in range(-1, N_LAYERS)]
    batch = model.batch(prompts)
    states = model.run(batch, sites).activations
    real = batch.attention_mask.bool()
    names = {study.token(name) for name in study.world.names[:4]}
    held = torch.tensor([bool(names & set(row)) for row in batch.input_ids.tolist()])[:, None].expand_as(real)[real]
    final = states[sites[-1]][real]
    return [
        fit_translator(states[s][real], final, held, model.unembed, 0 if s == sites[-1] else LENS_STEPS, 0).translator
        for s in sites
    ]


def read_patchscope(study: Study, asked: Asked) -> Readings:
    """Each layer's residual in the place of an unknown name, at the layer that it comes from: what is it called?"""
    before, after = TEMPLATES[0]
    batch = asked.model.batch([Prompt(before, "?", after.format("name"))] * N_ENTITIES)
    scores: list[np.ndarray] = []
    for n, states in enumerate(entity_states(asked)):
        patch = Patch(Site("resid_post", n - 1), batch.groups["entity"], states)
        scores.append(asked.hits(asked.model.run(batch, patches=[patch]).logits[:, asked.tokens]))
    return Readings(tuple(range(N_LAYERS + 1)), np.stack(scores))


def read_knockout(asked: Asked) -> Readings:
    """What every name loses in log-probability when `last` cannot see the entity's tokens in a window of layers."""
    windows = layers_of_windows(N_LAYERS, WINDOW, 1)
    cuts = [Knockout(w.start, w.stop, asked.batch.groups["last"], asked.where) for _, w in windows]
    plain = asked.model.run(asked.batch).logits[:, asked.tokens].log_softmax(-1)
    blocked = asked.model.blocked_logits(asked.batch, cuts)[1:, :, asked.tokens].log_softmax(-1)
    return Readings(tuple(place for place, _ in windows), (plain - blocked).numpy(), "half_of_sum")


def resolution_depths(
    study: Study, receiver: Receiver | None, translators: Sequence[Translator]
) -> dict[str, float | None]:
    """Method -> depth as a share of the layers; None where the permutation test says that nothing is read."""
    asked = ask_names(study, receiver)
    readings = {
        "logit_lens": read_lens(asked),
        "tuned_lens": read_lens(asked, translators),
        "patchscope": read_patchscope(study, asked),
        "knockout": read_knockout(asked),
    }
    return {m: resolution_depth(r, N_LAYERS, N_BOOT, PERMUTATIONS, 0).depth.value for m, r in readings.items()}


# --- the table --------------------------------------------------------------------------------------------------------

ARRIVES = (LATE_LAYER + 1) / N_LAYERS
"""Depth at which the late code is there, counted as probes and lenses do: 0 embedding, 1 after the last layer."""


@dataclass(frozen=True)
class Found:
    """What the instruments say of one model."""

    depths: dict[str, float | None]
    """By method: attribution counts 0 first layer, 1 last; all others 0 embedding, 1 after the last layer."""
    recall: float
    """Share of facts told."""
    naming: float
    """Share of names told."""
    moved: float
    """Signed attribution of the entity's tokens: their residual where the code arrives, mean over pairs."""
    moved_permuted: list[float]
    """The same with the answers of pairs permuted, for each of N_PERMUTED draws."""
    curves: pl.DataFrame | None
    scores: dict[tuple[Site, str], Tensor]


def arrival(receiver: Receiver | None) -> Site:
    """The first residual that can hold the entity."""
    return Site("resid_post", LATE_LAYER) if receiver and receiver.name == "late" else EMBEDDING


def look(study: Study, receiver: Receiver | None, translators: Sequence[Translator]) -> Found:
    """All instruments on one receiver; None is the language model on names, which has no pictures to probe."""
    run = "text" if receiver is None else "image"
    model, twins = (study.backbone if receiver is None else receiver.model), make_twins(study, receiver)
    scores = score(model, twins)
    node = (arrival(receiver), "entity" if receiver is None else "image")
    depths: dict[str, float | None] = {"attribution": attribution_depth(scores, run)}
    curves = None if receiver is None else probe_curves(study, receiver)
    if curves is not None:
        reads = float(curves.filter(feature="image")["accuracy"].max()) > 0.5
        depths["probes"] = probe_depth(curves) if reads else None
    depths |= resolution_depths(study, receiver, translators)
    recall = float(np.mean([accuracy(study, receiver, relation) for relation in RELATIONS]))
    naming = accuracy(study, receiver, "name")
    permuted = [float(score(model, twins.permuted(s), [node[0]])[node].mean()) for s in range(N_PERMUTED)]
    return Found(depths, recall, naming, float(scores[node].mean()), permuted, curves, scores)


TRUTHS = {
    "backbone": "a name: there before layer 0",
    "early": "at the embedding (0)",
    "late": f"output of layer {LATE_LAYER} ({ARRIVES:.3f})",
    "untrained": "there, but not as a name",
    "blind": "nowhere",
}


def main() -> None:
    """Train, look, print."""
    torch.set_num_threads(1)
    study = Study()
    translators = tune(study)
    methods = ("attribution", "probes", *METHODS)
    print(f"{N_LAYERS} layers, {N_ENTITIES} entities; a late code is added to the output of layer {LATE_LAYER}")
    print("| model | truth | " + " | ".join(methods) + " | names told | facts told | moved | moved, permuted |")
    print("|---" * (len(methods) + 6) + "|")
    for name in ("backbone", *RECEIVERS):
        found = look(study, study.receivers.get(name), translators)
        depths = [f"{d:.2f}" if (d := found.depths.get(m)) is not None else "-" for m in methods]
        told = [
            f"{found.naming:.2f}",
            f"{found.recall:.2f}",
            f"{found.moved:.2f}",
            f"{np.mean(found.moved_permuted):.2f} (sd {np.std(found.moved_permuted):.2f})",
        ]
        print("| " + " | ".join([name, TRUTHS[name], *depths, *told]) + " |", flush=True)


if __name__ == "__main__":
    main()
