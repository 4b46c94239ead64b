// Points over the slide, drawn by the graphics processor: 50,000 move as smoothly as 50.
const VERTEX = `#version 300 es
in vec2 place;
in float value;
in float odd;
uniform vec2 scale, offset;
uniform float low, high, size;
out float share;
flat out float ring;
flat out float shown;
void main() {
  shown = value > -1e29 ? 1.0 : 0.0;
  share = clamp((value - low) / max(high - low, 1e-12), 0.0, 1.0);
  ring = odd;
  gl_Position = vec4(place * scale + offset, 0.0, 1.0);
  gl_PointSize = size;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in float share;
flat in float ring;
flat in float shown;
uniform sampler2D colours;
uniform float opacity, size;
out vec4 colour;
void main() {
  float r = length(gl_PointCoord - 0.5) * 2.0;
  float soft = 2.0 / size;
  float inside = 1.0 - smoothstep(1.0 - soft, 1.0, r);
  float edge = ring * smoothstep(0.72 - soft, 0.72, r);
  vec4 body = vec4(texture(colours, vec2((share * 255.0 + 0.5) / 256.0, 0.5)).rgb, opacity * shown);
  colour = mix(body, vec4(0.85, 0.0, 0.55, max(opacity, 0.4) * max(shown, ring)), edge);
  colour.a *= inside;
  if (colour.a < 0.004) discard;
  colour.rgb *= colour.a;
}`;

function compile(gl, kind, source) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  return shader;
}

export class PointLayer {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = canvas.getContext("webgl2", { premultipliedAlpha: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("This browser has no WebGL 2, which draws the points; use a newer one.");
    this.gl = gl;
    this.count = 0;
    this.program = gl.createProgram();
    gl.attachShader(this.program, compile(gl, gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(this.program, compile(gl, gl.FRAGMENT_SHADER, FRAGMENT));
    gl.linkProgram(this.program);
    gl.useProgram(this.program);
    this.buffers = {};
    for (const [name, width] of [["place", 2], ["value", 1], ["odd", 1]]) {
      this.buffers[name] = gl.createBuffer();
      const where = gl.getAttribLocation(this.program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.enableVertexAttribArray(where);
      gl.vertexAttribPointer(where, width, gl.FLOAT, false, 0, 0);
    }
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) {
      gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    }
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    }
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  #fill(name, data) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  }

  /** Places (x and y in turn, pixels of the slide), and which points are odd. */
  setPlaces(places, odd) {
    this.count = places.length / 2;
    this.#fill("place", places);
    this.#fill("odd", odd ?? new Float32Array(this.count));
    this.setValues(new Float32Array(this.count).fill(NaN));
  }

  /** One value a point; not-a-number draws nothing. */
  setValues(values) {
    this.#fill("value", values.map((v) => (Number.isNaN(v) ? -1e30 : v)));
  }

  setColours(table) {
    const { gl } = this;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
  }

  /** Draw; `corner` and `step` are where pixel 0, 0 lies and how large a pixel is, in CSS pixels. */
  draw({ corner, step, low, high, opacity, diameter }) {
    const { gl, canvas } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count || opacity <= 0) return;
    const uniform = (name) => gl.getUniformLocation(this.program, name);
    gl.uniform2f(uniform("scale"), (2 * step) / width, (-2 * step) / height);
    gl.uniform2f(uniform("offset"), (2 * corner.x) / width - 1, 1 - (2 * corner.y) / height);
    gl.uniform1f(uniform("low"), low);
    gl.uniform1f(uniform("high"), high);
    gl.uniform1f(uniform("opacity"), opacity);
    gl.uniform1f(uniform("size"), Math.max(2, diameter * step * dense));
    gl.drawArrays(gl.POINTS, 0, this.count);
  }
}

/** Finds the point under the mouse without looking at all of them. */
export class PointIndex {
  constructor(places, reach) {
    this.places = places;
    this.reach = Math.max(reach, 1);
    this.cells = new Map();
    for (let i = 0; i < places.length / 2; i += 1) {
      const key = this.#key(places[2 * i], places[2 * i + 1]);
      if (!this.cells.has(key)) this.cells.set(key, []);
      this.cells.get(key).push(i);
    }
  }

  #key(x, y) {
    return `${Math.floor(x / this.reach)},${Math.floor(y / this.reach)}`;
  }

  /** Number of the nearest point within reach, or -1. */
  nearest(x, y) {
    let best = -1;
    let least = this.reach;
    for (const dx of [-1, 0, 1]) {
      for (const dy of [-1, 0, 1]) {
        const key = this.#key(x + dx * this.reach, y + dy * this.reach);
        for (const i of this.cells.get(key) ?? []) {
          const distance = Math.hypot(this.places[2 * i] - x, this.places[2 * i + 1] - y);
          if (distance < least) [best, least] = [i, distance];
        }
      }
    }
    return best;
  }
}
