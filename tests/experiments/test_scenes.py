"""Rendered scenes: geometry and labels by hand, and by a ray caster of numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.scenes import geometry, labels, scenes, shading

SIZE = 24

cast = jax.jit(geometry.cast)
draw_scene = jax.jit(scenes.draw_scene)
render_scene = jax.jit(scenes.render_scene, static_argnums=2)


@pytest.fixture(scope="module")
def scene():
    return draw_scene(jax.random.key(3))


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(np.asarray, scenes.render(jax.random.key(0), 6, SIZE))


def looked_at(shapes, size):
    rays = geometry.pixel_rays(size)
    return rays, cast(shapes, jnp.zeros_like(rays), rays)


def one_of_each():
    """A wall at 5, a sphere before it, and a box that is out of the way."""
    wall = geometry.Planes(jnp.array([[0.0, 0, -1]]), jnp.array([-5.0]))
    sphere = geometry.Spheres(jnp.array([[0.0, 0, 3]]), jnp.array([1.0]))
    box = geometry.Boxes(
        jnp.array([[0.0, 0, 2.5]]), jnp.array([[0.4, 0.3, 0.6]]), jnp.eye(3)[None]
    )
    return geometry.Shapes(wall, sphere, box, jnp.array([True, False]))


def test_a_sphere_before_a_wall():
    rays, hit = looked_at(one_of_each(), 9)
    np.testing.assert_allclose(rays[4, 4], [0, 0, 1], atol=1e-6)
    # The middle of the first pixel is 8/9 of the way to the border, at 30 degrees.
    corner = np.array([-8 / 9, -8 / 9, math.sqrt(3)])
    np.testing.assert_allclose(rays[0, 0], corner / np.linalg.norm(corner), rtol=1e-5)
    assert hit.surface[4, 4] == 1
    assert hit.distance[4, 4] == pytest.approx(2)
    np.testing.assert_allclose(hit.normal[4, 4], [0, 0, -1], atol=1e-6)
    assert hit.surface[0, 0] == 0
    assert hit.distance[0, 0] == pytest.approx(5 / rays[0, 0, 2])
    # Seen if the ray passes the centre, 3 away, by less than 1.
    sine = np.linalg.norm(np.asarray(rays)[..., :2], axis=-1)
    np.testing.assert_array_equal(hit.surface == 1, 3 * sine < 1)
    there = np.asarray(hit.surface) == 1
    points = np.asarray(hit.distance[..., None] * rays)[there]
    np.testing.assert_allclose(hit.normal[there], points - [0, 0, 3], atol=1e-5)


def test_a_box_before_a_sphere():
    _, hit = looked_at(one_of_each()._replace(present=jnp.array([True, True])), 9)
    # Its front is 1.9 away, and rows reach it up to 0.3 from the middle.
    np.testing.assert_array_equal(hit.surface[:, 4], [0, 0, 1, 2, 2, 2, 1, 0, 0])
    assert hit.distance[4, 4] == pytest.approx(1.9)
    np.testing.assert_allclose(hit.normal[3, 5], [0, 0, -1], atol=1e-6)


def cast_by_numpy(shapes, ray):
    """The first surface on a ray from the origin: every face, in float64."""
    found = []
    planes, spheres, boxes, present = jax.tree.map(
        lambda x: np.asarray(x, np.float64), shapes
    )
    for normal, offset in zip(*planes, strict=True):
        if (slope := normal @ ray) < 0:
            found.append((offset / slope, normal))
        else:
            found.append((np.inf, normal))
    for center, radius in zip(*spheres, strict=True):
        roots = np.roots([1, -2 * ray @ center, center @ center - radius**2])
        t = roots.real.min() if np.isreal(roots).all() else np.inf
        found.append((t, (t * ray - center) / radius if t < np.inf else ray))
    for center, half, frame in zip(*boxes, strict=True):
        best = (np.inf, ray)
        for axis, sign in itertools.product(range(3), (-1, 1)):
            normal = sign * frame[:, axis]
            t = normal @ (center + half[axis] * normal) / (normal @ ray)
            inside = np.abs(frame.T @ (t * ray - center)) <= half + 1e-6
            if inside.all() and 0 < t < best[0]:
                best = (t, normal)
        found.append(best)
    there = [True] * 5 + present.astype(bool).tolist()
    distances = [
        t if seen else np.inf for (t, _), seen in zip(found, there, strict=True)
    ]
    first = int(np.argmin(distances))
    return distances[first], first, found[first][1]


def test_every_pixel_is_that_of_a_ray_caster(scene):
    rays = geometry.pixel_rays(SIZE) @ scene.view.T
    hit = cast(scene.shapes, jnp.zeros_like(rays), rays)
    expected = [
        cast_by_numpy(scene.shapes, ray)
        for ray in np.asarray(rays, np.float64).reshape(-1, 3)
    ]
    distance, surface, normal = map(np.array, zip(*expected, strict=True))
    assert len(np.unique(surface)) >= 6
    np.testing.assert_array_equal(hit.surface.ravel(), surface)
    np.testing.assert_allclose(hit.distance.ravel(), distance, rtol=1e-4)
    np.testing.assert_allclose(hit.normal.reshape(-1, 3), normal, atol=1e-3)


def test_depths_normals_and_reshading_agree(batch):
    rays = np.asarray(geometry.pixel_rays(SIZE))
    cosine = rays[..., 2:] / np.linalg.norm(rays, axis=-1, keepdims=True)
    euclidean = batch["depth_euclidean"]
    np.testing.assert_allclose(batch["depth_zbuffer"], euclidean * cosine, rtol=1e-5)
    normal = batch["normal"]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, rtol=1e-5)
    towards = -(normal * rays).sum(-1, keepdims=True)
    assert towards.min() > 0  # All surfaces are seen from the outside.
    np.testing.assert_allclose(batch["reshading"], towards, atol=1e-6)
    # Points of the floor lie in a plane: their depth along its normal is constant.
    points = labels.FAR * euclidean * rays
    for image in range(len(normal)):
        floor = batch["segment_semantic"][image] == labels.SEGMENTS.index("floor")
        height = (points * normal).sum(-1)[image][floor]
        assert np.ptp(height) < 1e-4
        assert 1.2 <= -height.mean() <= 1.8


def test_the_room_is_turned_into_the_cameras_axes(scene):
    view = np.asarray(scene.view, np.float64)
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(view) == pytest.approx(1)
    found = render_scene(scene, jax.random.key(0), SIZE)
    floor = found["segment_semantic"] == labels.SEGMENTS.index("floor")
    expected = view.T @ [0, -1, 0]
    np.testing.assert_allclose(
        found["normal"][floor], np.tile(expected, (floor.sum(), 1)), atol=1e-6
    )


def test_labels_have_their_shapes_and_ranges(batch):
    assert set(batch) == {"rgb", "noisy", *scenes.TASKS}
    assert len(scenes.TASKS) == 12
    for task, (low, high) in labels.RANGES.items():
        channels = 3 if task in ("autoencoding", "denoising", "normal") else 1
        assert batch[task].shape == (6, SIZE, SIZE, channels), task
        assert low <= batch[task].min() < batch[task].max() <= high, task
        # None is the same for all images.
        assert batch[task].std(axis=0).max() > 0.05, task
    assert batch["segment_semantic"].shape == (6, SIZE, SIZE)
    assert set(np.unique(batch["segment_semantic"])) == set(range(5))
    assert batch["class_object"].shape == (6,)
    assert {scenes.input_of(task) for task in scenes.TASKS} == {"rgb", "noisy"}
    np.testing.assert_array_equal(batch["autoencoding"], batch["rgb"])
    np.testing.assert_array_equal(batch["denoising"], batch["rgb"])
    noise = (batch["noisy"] - batch["rgb"])[(batch["rgb"] > 0.4) & (batch["rgb"] < 0.6)]
    assert noise.std() == pytest.approx(labels.NOISE, rel=0.05)


def test_the_largest_object_is_counted():
    surface = np.array([[5, 5, 0, 0], [7, 7, 7, 0], [0, 9, 9, 0]])
    classes = jnp.array([4, 5, 3, 1, 2, 0])
    assert labels.largest_object(jnp.array(surface), 5, classes) == 3
    surface[0, 2] = 5  # As many as those of 7: the first wins.
    assert labels.largest_object(jnp.array(surface), 5, classes) == 4


def test_the_largest_objects_class_is_its_shape_and_texture():
    for seed in range(4):
        scene = draw_scene(jax.random.key(seed))
        rays = geometry.pixel_rays(SIZE) @ scene.view.T
        surface = cast(scene.shapes, jnp.zeros_like(rays), rays).surface
        counts = np.bincount(np.asarray(surface).ravel(), minlength=11)[5:]
        largest = int(counts.argmax())
        assert counts[largest] > 0
        shape = "sphere" if largest < 3 else "box"
        texture = shading.TEXTURES[int(scene.materials.kinds[5 + largest])]
        found = render_scene(scene, jax.random.key(0), SIZE)["class_object"]
        assert scenes.OBJECT_CLASSES[int(found)] == f"{texture} {shape}"


def test_a_scene_depends_on_the_key_and_its_number_only(batch):
    again = scenes.render(jax.random.key(0), 2, SIZE)
    other = scenes.render(jax.random.key(1), 2, SIZE)
    for name, values in batch.items():
        np.testing.assert_allclose(again[name], values[:2], atol=1e-5)
        if name != "class_object":
            assert not np.array_equal(other[name], values[:2])
            assert not np.array_equal(values[0], values[1])


def test_shadows_leave_ambient_light():
    shapes = one_of_each()
    light = jnp.zeros(3)
    # Behind the sphere, and far beside it: the light is 5 away from the wall.
    points = jnp.array([[0.0, 0, 5], [5, 0, 5]])
    normals = jnp.array([[0.0, 0, -1]] * 2)
    hit = geometry.Hit(jnp.zeros(2), jnp.zeros(2, int), normals)
    ambient = shading.AMBIENT
    expected = [ambient, ambient + (1 - ambient) / math.sqrt(2)]
    lit = jax.jit(shading.lit)
    np.testing.assert_allclose(lit(shapes, light, hit, points), expected)
    bare = shapes._replace(present=jnp.array([False, False]))
    np.testing.assert_allclose(lit(bare, light, hit, points)[0], 1)


def test_textures_follow_their_axes():
    turned = jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    materials = shading.Materials(
        kinds=jnp.array([0, 1]),
        colors=jnp.array([[[0.0] * 3, [1.0] * 3]] * 2),
        frequencies=jnp.array([1.0, 2.0]),
        phases=jnp.array([[0.0] * 3, [0.0] * 3]),
        centers=jnp.array([[0.0] * 3, [1.0, 0, 0]]),
        frames=jnp.stack([jnp.eye(3), turned]),
    )

    def colour(surface, *point):
        return float(shading.albedo(materials, jnp.int32(surface), jnp.array(point))[0])

    assert colour(0, 0.5, 0.5, 0.5) == 0
    assert colour(0, 1.5, 0.5, 0.5) == 1
    assert colour(0, 1.5, 0.5, -0.5) == 0
    # Stripes across y, half a unit wide, whatever x and z are.
    assert [colour(1, 1.7, y, 9.0) for y in (0.25, 0.75, 1.25)] == [0, 1, 0]


def test_noise_is_smooth_and_spread():
    lattice = jnp.asarray(np.indices((9, 9, 9)).reshape(3, -1).T - 4.0)
    values = np.asarray(shading.noise(lattice))
    assert values.mean() == pytest.approx(0.5, abs=0.05)
    assert values.std() == pytest.approx(1 / math.sqrt(12), abs=0.05)
    cube = values.reshape(9, 9, 9)
    for axis in range(3):
        along = np.moveaxis(cube, axis, 0)
        nearby = np.corrcoef(along[:-1].ravel(), along[1:].ravel())[0, 1]
        assert abs(nearby) < 0.15
    between = np.asarray(shading.noise(lattice + jnp.array([0.5, 0, 0])))
    middle = (cube[:-1] + cube[1:]) / 2
    np.testing.assert_allclose(between.reshape(9, 9, 9)[:-1], middle, atol=1e-5)
    np.testing.assert_allclose(shading.noise(lattice + 1e-5), values, atol=1e-3)


def test_edges_have_the_length_of_the_gradient():
    steps = jnp.arange(8) / 7
    ramp = jnp.broadcast_to(steps, (8, 8))[..., None]
    # The derivative over two pixels; the border's pixels are repeated.
    expected = np.full((8, 8), 2 / 7 / math.sqrt(2))
    expected[:, [0, -1]] /= 2
    for image in (ramp, ramp.swapaxes(0, 1)):
        found = np.asarray(labels.edges(image))[..., 0]
        wanted = expected if image is ramp else expected.T
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    edge = (jnp.arange(8) >= 4).astype(jnp.float32) * jnp.ones((8, 1))
    assert labels.edges(edge[..., None]).max() == pytest.approx(1 / math.sqrt(2))


def test_corners_are_found_and_edges_are_not():
    square = np.zeros((16, 16, 1), np.float32)
    square[5:, 5:] = 1
    found = np.asarray(labels.harris(jnp.asarray(square)))[..., 0]
    assert {4, 5} >= set(np.unravel_index(found.argmax(), found.shape))
    assert found[8:, 8:].max() == 0
    assert found[10, 4:6].max() == 0
    # The tensor of a pixel next to the corner, by hand.
    padded = np.pad(square[..., 0], 2, "edge").astype(np.float64)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16

    def gradients(row, column):
        window = padded[row + 1 : row + 4, column + 1 : column + 4]
        return (kernel * window).sum(), (kernel.T * window).sum()

    tensor = sum(
        weights[i, j] * np.outer(g, g)
        for i, j in itertools.product(range(3), range(3))
        for g in [np.array(gradients(4 + i, 4 + j))]
    )
    response = np.linalg.det(tensor) - 0.05 * np.trace(tensor) ** 2
    assert found[5, 5] == pytest.approx(response**0.25, rel=1e-5)


def test_jumps_of_the_depth_are_found_and_slopes_are_not():
    rays = np.asarray(geometry.pixel_rays(32))
    # A steep floor: 1.2 below the camera, seen to its horizon from above.
    normal = np.array([0.1, -0.9, -0.3])
    depth = -1.2 / (rays @ normal) * rays[..., 2]
    lower = depth[18:, :, None].astype(np.float32)
    assert lower.min() > 0
    assert labels.occlusions(jnp.asarray(lower)).max() < 1e-3
    near = lower.copy()
    near[4:9, 10:20] *= 0.5
    found = np.asarray(labels.occlusions(jnp.asarray(near)))[..., 0]
    assert found[4:9, [9, 10, 19, 20]].min() == 1
    assert found[6, 12:18].max() < 1e-3
    assert found[:2].max() < 1e-3


def test_labels_of_images_alone(batch):
    found = labels.image_only_labels(jax.random.key(5), batch["rgb"])
    assert set(found) == {
        "noisy", "autoencoding", "denoising", "edge_texture", "keypoints2d"
    }  # fmt: skip
    for name in ("autoencoding", "edge_texture", "keypoints2d"):
        np.testing.assert_allclose(found[name], batch[name], atol=1e-6)
    assert not np.array_equal(found["noisy"][0], found["noisy"][1])
