// What a person sees of a page, as numbers. Each is called from the tests.
const channels = (text) => {
  const found = text.match(/[\d.]+/g).map(Number);
  return { rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1 };
};
const luminance = ({ rgb }) => {
  const [r, g, b] = rgb.map((each) => {
    const value = each / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const ground = (element) => {
  const chip = element.closest(".chip");
  if (chip) return channels(getComputedStyle(chip.querySelector("rect")).fill);
  for (let each = element; each; each = each.parentElement) {
    const color = channels(getComputedStyle(each).backgroundColor);
    if (color.alpha === 1) return color;
  }
  return channels("rgb(255, 255, 255)");
};
const seen = (element) => element.checkVisibility() && element.getBoundingClientRect().width > 0;

window.faintTexts = () => {
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || /^(script|style|title|desc)$/i.test(element.tagName) || !seen(element)) continue;
    const style = getComputedStyle(element);
    const svg = element.namespaceURI.endsWith("svg");
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    const ratio = contrast(channels(svg ? style.fill : style.color), ground(element));
    count += 1;
    if (ratio < (large ? 3 : 4.5)) faint.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return { count, faint };
};

window.faintShapes = () => {
  const faint = [];
  for (const element of document.querySelectorAll(".curve:not(.faint), .dot, .part, .share, .operation")) {
    if (!seen(element) || element.closest("[aria-hidden]")?.matches(".patterns")) continue;
    const style = getComputedStyle(element);
    const paint = [style.stroke, style.fill].find((each) => each.startsWith("rgb") && !element.matches(".dot")) || style.fill;
    if (!paint.startsWith("rgb")) continue;
    let host = element.closest("svg");
    while (host.parentElement.closest("svg")) host = host.parentElement.closest("svg");
    const ratio = contrast(channels(paint), ground(host));
    if (ratio < 3) faint.push([element.getAttribute("class"), ratio]);
  }
  return faint;
};

window.charts = () =>
  [...document.querySelectorAll(".plot, .network")].filter((each) => each.checkVisibility()).map((each) => {
    const picture = each.querySelector("svg.curves") || each;
    const box = picture.getBoundingClientRect();
    const drawn = [...picture.querySelectorAll("path.curve, rect.part, .dot")].map((part) => part.getBoundingClientRect());
    return { width: box.width, height: box.height, drawn: drawn.some((part) => part.width > 1 || part.height > 1) };
  });

window.outside = () =>
  [...document.querySelectorAll(".tick, .chip rect, .figures div, .phase, h1, h2, h3, .legend li, pre")]
    .filter(seen)
    .filter((each) => each.getBoundingClientRect().left < -0.5 || each.getBoundingClientRect().right > innerWidth + 0.5)
    .map((each) => each.textContent.trim().slice(0, 40) || each.getAttribute("class"));

window.covered = (selector) => {
  const boxes = [...document.querySelectorAll(selector)].filter(seen).map((each) => [each.getBoundingClientRect(), each]);
  const found = [];
  boxes.forEach(([box, each], number) => {
    for (const [other, beside] of boxes.slice(0, number)) {
      if (box.left < other.right - 0.5 && other.left < box.right - 0.5 && box.top < other.bottom - 0.5 && other.top < box.bottom - 0.5)
        found.push([each.textContent, beside.textContent]);
    }
  });
  return found;
};
