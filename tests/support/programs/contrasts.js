// Returns, for each text on the page, the class of its element and the contrast of the text with its background.
() => {
    const numbers = (text) => text.match(/[\d.]+/g).map(Number);
    const part = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const back = (e) => {
        for (; e; e = e.parentElement) {
            const color = numbers(getComputedStyle(e).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
        }
    };
    return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled &&
        [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
            const [a, b] = [light(numbers(getComputedStyle(e).color)), light(back(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className || e.tagName];
        });
}
