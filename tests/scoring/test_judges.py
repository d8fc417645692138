"""Judges behind their interface, with small random models: wiring, batching and reading of answers, not
skill.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorarar.errors import UserError
from lorarar.pocket.critic import build_critic
from lorarar.scoring.judges import JudgePrompts, Question, load_judge
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
    model, processor = build_critic(prompts, ["oil painting", "glowing", "sticker"], patch=16)
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
