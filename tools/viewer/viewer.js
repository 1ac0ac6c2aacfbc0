// Objects to turn: any number of panes, each with a model of its own, under one camera that all of them share.
// One WebGL context draws every pane and copies the picture into the pane's canvas: browsers allow few contexts.

import {
  AmbientLight, Box3, Color, DirectionalLight, DoubleSide, Group, HemisphereLight, Mesh, MeshLambertMaterial, PCFShadowMap,
  PerspectiveCamera, PlaneGeometry, Scene, ShadowMaterial, Vector3, WebGLRenderer,
} from "three";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";

const FIELD = 26, FAR = 2.9; // degrees, and the camera's distance from the middle of the unit cube
const LOWEST = -20, HIGHEST = 85; // degrees of elevation
const NEAREST = 0.45, FARTHEST = 1.8; // factors of the distance
const OUTSIDE = 0.6, DIAGONAL = 1.2; // from the middle, of the cube whose sides are at 0.5; of what is brought into it
const DEGREES = 0.45, STEP = 10; // turned by a pixel of dragging, and by an arrow key

export function create() {
  const renderer = new WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
  renderer.shadowMap.enabled = true;
  renderer.shadowMap.type = PCFShadowMap;
  const scene = new Scene();
  scene.background = new Color(0xffffff);
  const camera = new PerspectiveCamera(FIELD, 1, 0.1, 20);
  const stage = new Group();
  const sun = new DirectionalLight(0xffffff, 1.5); // goes with the camera, above and left of it
  const above = new DirectionalLight(0xffffff, 0.5); // stays, and throws the shadow on the ground
  above.position.set(0.15, 2, 0.1);
  above.castShadow = true;
  above.shadow.mapSize.set(512, 512);
  above.shadow.radius = 6;
  Object.assign(above.shadow.camera, { left: -1, right: 1, top: 1, bottom: -1, near: 0.5, far: 4 });
  const ground = new Mesh(new PlaneGeometry(4, 4), new ShadowMaterial({ opacity: 0.16 }));
  ground.rotation.x = -Math.PI / 2;
  ground.receiveShadow = true;
  scene.add(stage, ground, sun, above, new HemisphereLight(0xffffff, 0xc9c4ba, 1.5), new AmbientLight(0xffffff, 0.35));

  const panes = new Set();
  const view = { azimuth: 30, elevation: 25, distance: 1 };
  let home = 30, waiting = false;

  function draw() {
    waiting = false;
    const [a, e] = [view.azimuth, view.elevation].map((degrees) => (degrees * Math.PI) / 180);
    const away = FAR * view.distance;
    camera.position.set(away * Math.sin(a) * Math.cos(e), away * Math.sin(e), away * Math.cos(a) * Math.cos(e));
    camera.lookAt(0, 0, 0);
    camera.updateMatrixWorld();
    sun.position.set(-1.2, 1.6, 2).applyQuaternion(camera.quaternion);
    for (const pane of panes) {
      const side = Math.round(pane.canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2));
      if (!side) continue;
      if (pane.canvas.width !== side) pane.canvas.width = pane.canvas.height = side;
      renderer.setSize(side, side, false);
      stage.clear();
      ground.visible = Boolean(pane.model);
      if (pane.model) {
        stage.add(pane.model);
        ground.position.y = pane.model.userData.foot;
      }
      renderer.render(scene, camera);
      pane.canvas.getContext("2d").drawImage(renderer.domElement, 0, 0);
    }
  }

  function redraw() {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(draw);
    }
  }

  function turn(azimuth, elevation, zoom = 1) {
    view.azimuth += azimuth;
    view.elevation = Math.min(Math.max(view.elevation + elevation, LOWEST), HIGHEST);
    view.distance = Math.min(Math.max(view.distance * zoom, NEAREST), FARTHEST);
    redraw();
  }

  function reset(azimuth = home) {
    home = azimuth;
    Object.assign(view, { azimuth, elevation: 25, distance: 1 });
    redraw();
  }

  function listen(canvas) {
    const held = new Map(); // pointers that are down
    canvas.style.touchAction = "pan-y"; // a finger that goes up or down still scrolls the page
    canvas.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const other = [...held.values()].find((one) => one.pointerId !== event.pointerId);
      if (other) {
        const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
        turn(0, 0, apart(before) / apart(event));
      } else {
        turn(DEGREES * (before.clientX - event.clientX), DEGREES * (event.clientY - before.clientY));
      }
      held.set(event.pointerId, event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => held.delete(event.pointerId));
    }
    canvas.addEventListener("dblclick", () => reset());
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // the wheel alone scrolls the page
      event.preventDefault();
      turn(0, 0, Math.exp(event.deltaY / 200));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const moves = {
        ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP],
        "+": [0, 0, 0.9], "=": [0, 0, 0.9], "-": [0, 0, 1 / 0.9],
      };
      if (event.key === "Home") reset();
      else if (moves[event.key] && !event.ctrlKey && !event.metaKey) turn(...moves[event.key]);
      else return;
      event.preventDefault();
    });
  }

  return {
    turn,
    reset,
    // Show a model that `load` gave, or null for nothing, in a canvas.
    show(canvas, model) {
      let pane = [...panes].find((one) => one.canvas === canvas);
      if (!pane) {
        panes.add((pane = { canvas, model: null }));
        listen(canvas);
        new ResizeObserver(redraw).observe(canvas);
      }
      pane.model = model;
      redraw();
    },
    remove(canvas) {
      for (const pane of panes) if (pane.canvas === canvas) panes.delete(pane);
    },
  };
}

// The model of a .glb file, from its bytes. One that is larger than the unit cube, or outside of it, is brought into it.
export async function load(bytes) {
  const { scene } = await new GLTFLoader().parseAsync(bytes, "");
  scene.traverse((part) => {
    if (!part.isMesh) return;
    part.geometry.computeVertexNormals();
    const normal = part.geometry.getAttribute("normal");
    for (let at = 0; at < normal.count; at++) { // of specks without an area, which would be black
      if (!normal.getX(at) && !normal.getY(at) && !normal.getZ(at)) normal.setY(at, 1);
    }
    const { map = null, color } = part.material, vertexColors = part.geometry.hasAttribute("color");
    part.material = new MeshLambertMaterial({ map, color, vertexColors, side: DoubleSide });
    part.castShadow = true;
  });
  const box = new Box3().setFromObject(scene);
  const model = new Group().add(scene);
  if (Math.max(...box.min.toArray().map((one) => -one), ...box.max.toArray()) > OUTSIDE) {
    const scale = DIAGONAL / box.getSize(new Vector3()).length();
    model.scale.setScalar(scale);
    box.getCenter(model.position).multiplyScalar(-scale);
    box.setFromObject(model);
  }
  model.userData.foot = box.min.y;
  return model;
}
