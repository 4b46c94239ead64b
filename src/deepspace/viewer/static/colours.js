// Colour maps that colour-blind people can read, as 33 stops each (matplotlib's), and a palette
// for clusters (Okabe and Ito 2008, then Tol's muted scheme).
const STOPS = {
  viridis: "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f988b1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23d8e219ece51bfde725",
  cividis: "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f70737676767d7c788482798c8878938e789b9476a39a74aba072b4a76fbcae6cc4b468cdbb63d5c25edec958e7d150f0d846f9e03afee838",
  magma: "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81762181832681902a819c2e7faa337db73779c43c75d0416fdc4869e75263ef5d5ef56b5cf9795dfc8961fd9869fea772feb67cfec488fed395fde2a3fcf0b2fcfdbf",
};

export const MAPS = Object.keys(STOPS);

export const PALETTE = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#332288",
  "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499",
];

const parse = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** 256 colours of a map, RGBA bytes. */
export function table(name) {
  const stops = STOPS[name].match(/.{6}/g).map(parse);
  const out = new Uint8Array(256 * 4);
  for (let i = 0; i < 256; i += 1) {
    const at = (i / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c += 1) {
      const share = at - left;
      out[4 * i + c] = Math.round((1 - share) * stops[left][c] + share * stops[left + 1][c]);
    }
    out[4 * i + 3] = 255;
  }
  return out;
}

/** 256 colours in which entry k is cluster k's. */
export function palette() {
  const out = new Uint8Array(256 * 4);
  for (let i = 0; i < 256; i += 1) {
    out.set([...parse(PALETTE[i % PALETTE.length].slice(1)), 255], 4 * i);
  }
  return out;
}

/** CSS gradient from low to high. */
export function gradient(name) {
  const stops = STOPS[name].match(/.{6}/g).map((hex) => `#${hex}`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
