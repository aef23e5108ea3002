/** A whole number with commas between thousands: 4,884,480. (toLocaleString would load tables for tens of milliseconds at its first call.) */
export function withCommas(value: number): string {
  return String(value).replace(/\B(?=(?:\d{3})+$)/g, ',');
}
