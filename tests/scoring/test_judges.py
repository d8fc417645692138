"""Judges behind their interface, with small random models: wiring, batching and reading of answers, not
skill.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_critic import build_critic

from lorarar.errors import UserError
from lorarar.scoring.images import as_pil
from lorarar.scoring.judges import JudgePrompts, Question, Verdict, load_judge
from lorarar.scoring.judges.critic import LlavaCritic, conversation, read_answer
from lorarar.scoring.judges.verification import VerificationJudge, Verifier, as_tensor, save_verifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prompts():
    return JudgePrompts.load(ROOT / "data/prompts.yaml")


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(10, 64, 64, 3), dtype=np.uint8)
    kinds = ["subject", "style", "style", "subject", "style"]
    words = ["", "oil painting", "glowing", "", "sticker"]
    return [Question(k, pictures[2 * i], pictures[2 * i + 1], words[i]) for i, k in enumerate(kinds)]


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True), ("no.", False), (" **Yes**, it does", True), ("NO", False), ("\nyes!", True),
        ("Not at all", None), ("I think yes", None), ("", None), ("...", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_an_answer_is_its_first_word(text, yes):
    assert read_answer(text) is yes


def test_prompts_are_the_papers_and_put_the_pictures_in_place(prompts, questions):
    system, user = conversation(prompts, questions[1])
    assert system["content"][0]["text"] == "You are a helpful assistant."
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    before, between, after = (part["text"] for part in user["content"] if part["type"] == "text")
    assert before.endswith("Example image in the oil painting style:\n")
    assert between == "\n\nTest image:\n"
    assert after.endswith("Is the test image in the oil painting style?\nAnswer with Yes or No only.")
    assert "{" not in before + between + after


def test_bad_prompts_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        JudgePrompts.load(tmp_path / "none.yaml")
    (tmp_path / "p.yaml").write_text("mars2: {system: s, subject: 'one {image}', style: '{image}{image}'}")
    with pytest.raises(UserError, match="twice"):
        JudgePrompts.load(tmp_path / "p.yaml")


@pytest.fixture(scope="module")
def random_verification_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_verification")
    for kind in ("subject", "style"):
        save_verifier(Verifier(widths=(4, 8, 8), width=8), folder / f"{kind}.safetensors")
    return folder


def test_random_verification_networks_answer_each_question_by_its_own_network(
    random_verification_folder, prompts, questions
):
    judge = load_judge(random_verification_folder, prompts)
    assert isinstance(judge, VerificationJudge)
    verdicts = judge.answer(questions, batch_size=2)
    for question, verdict in zip(questions, verdicts, strict=True):
        network = judge.networks[question.kind]
        with torch.inference_mode():
            logit = network(as_tensor([question.reference]), as_tensor([question.test]))
        assert verdict.probability == pytest.approx(logit.sigmoid().item(), abs=1e-5)
        assert verdict.yes == (verdict.probability > 0.5)


def test_broken_judges_are_named(random_verification_folder, prompts, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: not a judge"):
        load_judge(tmp_path, prompts)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert' is no judge; known are verification"):
        load_judge(tmp_path, prompts)
    (tmp_path / "config.json").write_text((random_verification_folder / "config.json").read_text())
    (tmp_path / "subject.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"subject\.safetensors: cannot be loaded"):
        load_judge(tmp_path, prompts)


@pytest.fixture(scope="module")
def random_critic(prompts):
    torch.manual_seed(0)
    model, processor = build_critic(prompts, ["oil painting", "glowing", "sticker"])
    return LlavaCritic(model, processor, prompts)


def test_random_llava_critic_answers_through_processor_and_chat_template(random_critic, questions):
    inputs = random_critic.inputs(questions)
    image_token = random_critic.processor.image_token_id
    assert ((inputs["input_ids"] == image_token).sum(1) == 2 * (16 + 1)).all()
    assert inputs["pixel_values"].shape[-3:] == (3, 64, 64)
    text = random_critic.processor.tokenizer.decode(inputs["input_ids"][1])
    assert text.startswith("<|im_start|> system you are a helpful assistant")
    assert text.endswith("answer with yes or no only . <|im_end|> <|im_start|> assistant")
    assert "<unk>" not in text


def test_random_llava_critic_batches_do_not_change_its_probabilities(random_critic, questions):
    together = random_critic.answer(questions)
    alone = [random_critic.answer([question])[0] for question in questions]
    assert [v.probability for v in together] == pytest.approx([v.probability for v in alone], abs=1e-4)
    assert all(0 <= verdict.probability <= 1 for verdict in together)


def test_llava_critic_that_wants_to_say_yes_is_read_as_yes(random_critic, questions):
    head = random_critic.model.get_output_embeddings()
    forced = torch.nn.Linear(head.in_features, head.out_features)
    torch.nn.init.zeros_(forced.weight)
    torch.nn.init.zeros_(forced.bias)
    forced.bias.data[random_critic.yes] = 9.0
    random_critic.model.set_output_embeddings(forced)
    try:
        verdicts = random_critic.answer(questions[:2])
    finally:
        random_critic.model.set_output_embeddings(head)
    assert [verdict.yes for verdict in verdicts] == [True, True]
    assert verdicts[0].probability == pytest.approx(1 / (1 + np.exp(-9.0)), abs=1e-4)


def test_llava_critic_loads_from_its_own_folder_as_any_judge_does(random_critic, prompts, questions, tmp_path):
    random_critic.model.save_pretrained(tmp_path)
    random_critic.processor.save_pretrained(tmp_path)
    judge = load_judge(tmp_path, prompts)
    assert isinstance(judge, LlavaCritic)
    expected = [verdict.probability for verdict in random_critic.answer(questions)]
    assert [verdict.probability for verdict in judge.answer(questions)] == pytest.approx(expected, abs=1e-5)


def test_variants_are_the_papers_wording_and_four_others_each_with_its_opposite(prompts):
    variants = JudgePrompts.variants(ROOT / "data/prompts.yaml")
    assert variants["paper"] == prompts and not prompts.swapped
    straight = [name for name, variant in variants.items() if not variant.swapped and name != "paper"]
    assert len(straight) >= 4
    assert {name for name, variant in variants.items() if variant.swapped} == {f"{name}-swapped" for name in straight}
    for kind in ("subject", "style"):
        wordings = [getattr(variant, kind) for variant in variants.values()]
        assert len(set(wordings)) == len(wordings)
        assert all("Yes" in wording and "No" in wording for wording in wordings)
    assert all("{style}" in variant.style for variant in variants.values())


def test_broken_variants_are_named(tmp_path):
    paper = "mars2: {system: s, subject: '{image}{image}', style: '{image}{image}'}\n"
    (tmp_path / "p.yaml").write_text(paper)
    with pytest.raises(UserError, match="mars2_variants needs swapped"):
        JudgePrompts.variants(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text(paper + "mars2_variants: {a: {subject: '{image}{image}', style: x}}")
    with pytest.raises(UserError):
        JudgePrompts.variants(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("mars2: [")
    with pytest.raises(UserError, match="not YAML") as caught:
        JudgePrompts.load(tmp_path / "p.yaml")
    assert "\n" not in str(caught.value)


def test_where_prompts_are_swapped_yes_means_no(prompts):
    swapped = replace(prompts, swapped=True)
    assert prompts.verdict(True, 0.8) == Verdict(True, 0.8)
    assert swapped.verdict(True, 0.75) == Verdict(False, 0.25)
    assert swapped.verdict(False, None) == Verdict(True, None)
    assert swapped.verdict(None, 1.0) == Verdict(None, 0.0)


def test_a_random_llava_critic_is_asked_swapped_questions_and_turns_its_answers(random_critic, prompts, questions):
    turned = LlavaCritic(random_critic.model, random_critic.processor, replace(prompts, swapped=True))
    expected = [1 - verdict.probability for verdict in random_critic.answer(questions)]
    assert [verdict.probability for verdict in turned.answer(questions)] == pytest.approx(expected, abs=1e-5)


def test_a_random_llava_critic_is_asked_every_variant(random_critic, questions):
    for name, variant in JudgePrompts.variants(ROOT / "data/prompts.yaml").items():
        critic = LlavaCritic(random_critic.model, random_critic.processor, variant)
        inputs = critic.inputs(questions[:2])
        image_token = critic.processor.image_token_id
        assert ((inputs["input_ids"] == image_token).sum(1) == 2 * (16 + 1)).all(), name
        assert len(critic.answer(questions[:2])) == 2


def test_larger_pictures_are_reduced_and_smaller_ones_left():
    pictures = [np.zeros(shape, np.uint8) for shape in ((1024, 768, 3), (100, 1024, 3), (40, 64, 3))]
    assert [picture.size for picture in as_pil(pictures, 512)] == [(384, 512), (512, 50), (64, 40)]
    assert [picture.size for picture in as_pil(pictures)] == [(768, 1024), (1024, 100), (64, 40)]


def test_a_random_llava_critic_sees_reduced_pictures(random_critic, prompts, monkeypatch):
    large = Question("subject", *np.random.default_rng(0).integers(0, 256, size=(2, 300, 200, 3), dtype=np.uint8))
    critic = LlavaCritic(random_critic.model, random_critic.processor, prompts, longest_side=96)
    assert critic.inputs([large])["image_sizes"].tolist() == [[96, 64]] * 2
    assert random_critic.inputs([large])["image_sizes"].tolist() == [[300, 200]] * 2
    assert len(critic.answer([large])) == 1


def test_identity_of_local_judges_is_their_files_and_options(
    random_critic, random_verification_folder, prompts, tmp_path, questions
):
    random_critic.model.save_pretrained(tmp_path / "critic")
    random_critic.processor.save_pretrained(tmp_path / "critic")
    whole, reduced = (load_judge(tmp_path / "critic", prompts, longest_side=side) for side in (None, 48))
    assert whole.identity == load_judge(tmp_path / "critic", prompts).identity != reduced.identity
    assert whole.prompts is prompts
    spread_out = load_judge(str(tmp_path / "critic"), prompts, device_map="cpu")
    assert spread_out.identity == whole.identity
    expected = [verdict.probability for verdict in whole.answer(questions)]
    assert [verdict.probability for verdict in spread_out.answer(questions)] == pytest.approx(expected, abs=1e-5)
    before = whole.identity
    (tmp_path / "critic" / "chat_template.jinja").write_text("{{ messages }}")
    assert load_judge(tmp_path / "critic", prompts).identity != before
    verification = load_judge(random_verification_folder, prompts)
    assert verification.identity.startswith("verification sha256:") and verification.prompts is None
    for unnamed in (random_critic, VerificationJudge({})):
        with pytest.raises(ValueError, match="no identity"):
            _ = unnamed.identity


def test_four_bits_without_their_library_are_refused_in_one_line(random_critic, prompts, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(UserError, match="need bitsandbytes; `pip install bitsandbytes`") as caught:
        LlavaCritic.load(tmp_path, prompts, four_bit=True)
    assert "\n" not in str(caught.value)


def test_options_and_models_that_are_not_there_are_named(random_verification_folder, prompts):
    with pytest.raises(UserError, match="has no option longest_side; it has none"):
        load_judge(random_verification_folder, prompts, longest_side=512)
    with pytest.raises(UserError, match=r"no-such/critic: transformers cannot load .*allow the download") as caught:
        load_judge("no-such/critic", prompts)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"config\.json: not a judge's configuration"):
        load_judge("nowhere", prompts)
